"""The pictures of one variant, from its tables."""

from pathlib import Path

import click

from lowrank.files import read_json
from lowrank.steps.common import Paths, Step, say


@click.command(cls=Step)
@click.option("--name", required=True, help="The variant's.")
@click.option("--result", type=Path, required=True, help="The variant's, JSON.")
@click.option("--layers", type=Path, required=True, help="A record a layer, JSON.")
@click.option("--times", type=Path, required=True, help="A record a layer and device, JSON.")
@click.option("--curve", type=Path, required=True, help="A record a point, JSON.")
@click.option("--ranks-picture", type=Path, required=True, help="Output: ranks by layer, SVG.")
@click.option(
    "--times-pictures", type=Paths(), required=True, help="Output: times_<device>.svg, by layer."
)
@click.option("--curve-picture", type=Path, required=True, help="Output: fine-tuning, SVG.")
def draw(
    name: str,
    result: Path,
    layers: Path,
    times: Path,
    curve: Path,
    ranks_picture: Path,
    times_pictures: list[Path],
    curve_picture: Path,
) -> None:
    """Draw one variant."""
    from lowrank.report import variant_pictures as variant
    from lowrank.report.provenance import origin_of
    from lowrank.report.style import stamped

    of_layers, of_times = read_json(layers), read_json(times)
    with stamped(origin_of([read_json(result)])):
        variant.ranks_picture(ranks_picture, of_layers, title=f"{name}: ranks and MACs by layer")
        for path in times_pictures:
            device = path.stem.removeprefix("times_")
            variant.times_picture(
                path,
                [each for each in of_times if each["device"] == device],
                of_layers,
                title=f"{name}: time by layer on {device}",
            )
        variant.curve_picture(curve_picture, read_json(curve), title=f"{name}: fine-tuning")
    say(" ".join(map(str, [ranks_picture, *times_pictures, curve_picture])))


if __name__ == "__main__":
    draw()
