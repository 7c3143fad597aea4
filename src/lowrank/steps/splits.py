"""Decide which images choices about a network are made on, and which are reported."""

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
@parameter(
    "decoding", "For a folder: the dataset's entry, JSON.", Json(DatasetSettings), default="{}"
)
@output_path("output", "Folder that holds splits.json.")
def splits(
    model: str,
    dataset: Path,
    validation: ValidationSettings,
    decoding: DatasetSettings,
    output: Path,
) -> None:
    """Decide which images choices about a network are made on, and which are reported."""
    from lowrank.data.splits import INDEX, write_splits
    from lowrank.files import read_json

    write_splits(
        output,
        dataset,
        validation,
        decoding,
        place=f"checkpoint.{model}.validation",
        say=say,
    )
    document = read_json(output / INDEX)
    counts = {name: each["images"] for name, each in document["splits"].items()}
    chosen = document["validation"]
    say(
        f"choices are made on {counts['validation']} images "
        + (f"of {chosen['folder']}" if "folder" in chosen else f"of the {chosen['from']} split")
        + f"; {counts['test']} test images are reported, {counts['train']} are for training"
    )


if __name__ == "__main__":
    splits()
