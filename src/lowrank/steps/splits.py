"""Decide which images choices about a network are made on, and which are reported."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say


@click.command(cls=Step)
@click.option("--model", required=True, help="Name of the entry under `checkpoint`.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--validation", type=Json(), required=True, help="`validation` of that entry, JSON.")
@click.option(
    "--decoding", type=Json(), default="{}", help="The dataset's entry, JSON: for a folder."
)
@click.option("--output", type=Path, required=True, help="Output: folder that holds splits.json.")
def splits(
    model: str,
    dataset: Path,
    validation: dict[str, Any],
    decoding: dict[str, Any],
    output: Path,
) -> None:
    """Decide which images choices about a network are made on, and which are reported."""
    from lowrank.config.checkpoint import ValidationSettings
    from lowrank.config.dataset import DatasetSettings
    from lowrank.data.splits import INDEX, write_splits
    from lowrank.files import read_json

    write_splits(
        output,
        dataset,
        ValidationSettings.model_validate(validation),
        DatasetSettings.model_validate(decoding),
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
