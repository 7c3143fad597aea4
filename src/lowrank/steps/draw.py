"""Draw the pictures of one variant from its tables."""

from pathlib import Path

import click

from lowrank.files import read_json
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    input_path,
    output_path,
    output_paths,
    task_option,
    wildcard,
)


@click.command(cls=Step)
@wildcard("model", "Name of the network.")
@wildcard("method", "Name of the method.")
@task_option
@input_path("result", "The result of the variant, JSON.")
@input_path("layers", "A record for each layer, JSON.")
@input_path("times", "A record for each device and layer, JSON.")
@input_path("curve", "A record for each point of the training curve, JSON.")
@output_path("ranks_picture", "Ranks by layer, SVG.")
@output_paths("times_pictures", "Times by layer for each device, times_<device>.svg.")
@output_path("curve_picture", "The metric during fine-tuning, SVG.")
def draw(
    model: str,
    method: str,
    task: str,
    result: Path,
    layers: Path,
    times: Path,
    curve: Path,
    ranks_picture: Path,
    times_pictures: list[Path],
    curve_picture: Path,
) -> None:
    """Draw the pictures of one variant."""
    from lowrank.report import variant_pictures as variant
    from lowrank.report.provenance import origin_of
    from lowrank.report.style import stamped
    from lowrank.tasks import get_task

    name = f"{model}_{method}"
    layer_rows, time_rows = read_json(layers), read_json(times)
    with stamped(origin_of([read_json(result)])):
        variant.ranks_picture(ranks_picture, layer_rows, title=f"{name}: ranks and MACs by layer")
        for path in times_pictures:
            device = path.stem.removeprefix("times_")
            variant.times_picture(
                path,
                [row for row in time_rows if row["device"] == device],
                layer_rows,
                title=f"{name}: time by layer on {device}",
            )
        variant.curve_picture(
            curve_picture,
            read_json(curve),
            get_task(task).metric,
            title=f"{name}: fine-tuning",
        )
    say(" ".join(map(str, [ranks_picture, *times_pictures, curve_picture])))


if __name__ == "__main__":
    draw()
