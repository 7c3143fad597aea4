"""Obtain a dataset, verify it and store it as arrays that memory-map."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say


@click.command(cls=Step)
@click.option("--name", required=True, help="Name of the dataset: cifar10.")
@click.option(
    "--search",
    type=Path,
    default=Path("data"),
    show_default=True,
    help="Folder where files of the dataset put there by hand are looked for.",
)
@click.option("--output", type=Path, required=True, help="Output: folder of arrays and an index.")
def dataset(name: str, search: Path, output: Path) -> None:
    """Obtain a dataset and store it."""
    from lowrank.errors import unknown_name
    from lowrank.training.sources import DATASETS, refuse_foreign_folder, store_dataset

    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS, where="--name")
    # Told before a download rather than after it.
    refuse_foreign_folder(output)
    known = DATASETS[name]
    arrays = known.obtain(search, say)
    store_dataset(output, name, known.classes, arrays)
    say(
        f"{len(arrays['train_images'])} training and {len(arrays['test_images'])} test images "
        f"stored in {output}"
    )


if __name__ == "__main__":
    dataset()
