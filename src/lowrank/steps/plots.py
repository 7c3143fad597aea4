"""Write DVC's page of plots with all scripts included, so that it works offline."""

from pathlib import Path

import click

from lowrank.steps.common import Step, run, say

# The version that the templates in .dvc/plots use.
_VEGA_LITE = "5.20"

# DVC's own page without `{scripts}`, which would load Vega from a CDN.
_PAGE = """<!DOCTYPE html>
<html>
<head>
    <meta charset="utf-8">
    {refresh_tag}
    <title>DVC Plot</title>
    <script>%s</script>
    <style>table {border-spacing: 15px;}</style>
</head>
<body>
    {plot_divs}
</body>
</html>
"""


@click.command(cls=Step)
@click.option("--out", type=Path, default=Path("dvc_plots"), help="Output: folder of the page.")
@click.argument("targets", nargs=-1)
def plots(out: Path, targets: tuple[str, ...]) -> None:
    """Write the page of `dvc plots show TARGETS` so that it works offline."""
    from lowrank.errors import UserError
    from lowrank.temporary import temporary_folder

    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise UserError(
            "the package vl-convert-python, which contains the scripts of DVC's plots, is not "
            "installed. Run `make env` or `pip install vl-convert-python`, then run this command "
            "again."
        ) from error
    with temporary_folder() as folder:
        template = folder / "page.html"
        # The type stub of vl-convert requires a snippet; the function does not.
        scripts = javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]
        template.write_text(_PAGE % scripts, encoding="utf-8")
        options = ("--html-template", str(template.resolve()), "--out", str(out))
        run("dvc", "plots", "show", *options, "--", *targets)
    say(f"{out / 'index.html'}: works offline")


if __name__ == "__main__":
    plots()
