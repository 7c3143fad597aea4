"""All variants side by side: a table, and their accuracy against what they cost."""

import csv
import io
from pathlib import Path
from typing import Any

import click

from lowrank.errors import UserError
from lowrank.files import read_json, write_text
from lowrank.report.table import html, markdown, place_of, records_of
from lowrank.report.table import overview as overview_of
from lowrank.steps.common import Step, say
from lowrank.steps.options import kept_path, output_path, parameter


@click.command(cls=Step)
@kept_path("results", "results", "Folder of the variants' results.")
@parameter("variants", "`model:method` of each, separated by spaces.")
@output_path("table", "A line for each, CSV.")
@output_path("page", "The same, Markdown.")
@output_path("web_page", "The same, HTML.")
@output_path("latency", "Accuracy by latency, SVG.")
@output_path("macs", "Accuracy by MACs, SVG.")
@output_path("energy", "Energy of one run, SVG.")
def overview(
    results: Path,
    variants: str,
    table: Path,
    page: Path,
    web_page: Path,
    latency: Path,
    macs: Path,
    energy: Path,
) -> None:
    """Bring all variants together."""
    from lowrank.report.pareto import accuracy_picture, energy_picture
    from lowrank.report.provenance import origin_of
    from lowrank.report.style import stamped

    named = [each.split(":") for each in variants.split()]
    documents = [(*each, _result(results / f"{'_'.join(each)}.json", *each)) for each in named]
    records = overview_of(documents)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(table, lines.getvalue())
    write_text(page, markdown(records))
    write_text(web_page, html(records))
    shown = [document for *_, document in documents]
    with stamped(origin_of(shown, "snakemake --cores all results/summary.csv")):
        accuracy_picture(
            latency,
            records,
            cost="relative_latency",
            label="latency relative to the original in float32",
            front="on_front_by_latency",
        )
        first_place = {each["network"]: place_of(each) for each in reversed(records)}
        accuracy_picture(
            macs,
            # They are the same on every device.
            [each for each in records if place_of(each) == first_place[each["network"]]],
            cost="macs",
            label="multiply-accumulates of one image, millions",
            unit=1e6,
            front="on_front_by_macs",
        )
        energy_picture(energy, records, _reasons(shown))
    say(f"{len(named)} variants: {page}")


def _result(path: Path, model: str, method: str) -> dict[str, Any]:
    result = read_json(path)
    try:
        records_of(model, method, result)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a result that this version of lowrank wrote ({error!r}). Delete it, or "
            f"build it again: `snakemake --cores all --forcerun summarize -- {path}`."
        ) from error
    return result


def _reasons(documents: list[dict[str, Any]]) -> list[str]:
    """Why devices did not count energy."""
    return [
        f"{device}: {each['not_measured']}"
        for document in documents
        for device, each in document.get("energy_mj", {}).items()
        if "not_measured" in each
    ]


if __name__ == "__main__":
    overview()
