"""Divide images into those for choices about a network, for reports and for training."""

from pathlib import Path

import click

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_path, output_path, parameter, wildcard


@click.command(cls=Step)
@wildcard("model", "Name of the entry under `checkpoint`.")
@input_path("dataset", "Folder that the dataset step wrote.")
@parameter("validation", "`validation` of that entry, JSON.", Json(ValidationSettings))
@parameter("calibration", "Folder of calibration images; empty for training images.", default="")
@parameter(
    "decoding",
    "For a folder of your own images: the dataset's entry under `dataset`, JSON.",
    Json(DatasetSettings),
    default="{}",
)
@output_path("output", "Folder of splits.json.")
def splits(
    model: str,
    dataset: Path,
    validation: ValidationSettings,
    calibration: str,
    decoding: DatasetSettings,
    output: Path,
) -> None:
    """Divide images into those for choices about a network, for reports and for training."""
    from lowrank.data.splits import INDEX, write_splits
    from lowrank.files import read_json

    write_splits(
        output,
        dataset,
        validation,
        decoding,
        calibration=calibration or None,
        place=f"checkpoint.{model}",
        say=say,
    )
    document = read_json(output / INDEX)
    counts = {name: split["images"] for name, split in document["splits"].items()}
    source, own = document["validation"], document.get("calibration")
    say(
        f"choices are made on {counts['validation']} images "
        + (f"of {source['folder']}" if "folder" in source else f"of the {source['from']} split")
        + f"; {counts['test']} test images are for reports, {counts['train']} images for training"
        + (f", {own['images']} of {own['folder']} for calibration" if own else "")
    )


if __name__ == "__main__":
    splits()
