"""The pictures of one variant, from its tables."""

from pathlib import Path

import click

from lowrank.files import read_json
from lowrank.steps.common import Step, say
from lowrank.steps.options import input_path, output_path, output_paths, wildcard


@click.command(cls=Step)
@wildcard("model", "Name of the network.")
@wildcard("method", "Name of the method.")
@input_path("result", "The variant's, JSON.")
@input_path("layers", "A record a layer, JSON.")
@input_path("times", "A record a layer and device, JSON.")
@input_path("curve", "A record a point, JSON.")
@output_path("ranks_picture", "Ranks by layer, SVG.")
@output_paths("times_pictures", "times_<device>.svg, by layer.")
@output_path("curve_picture", "Fine-tuning, SVG.")
def draw(
    model: str,
    method: str,
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

    name = f"{model}_{method}"
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
