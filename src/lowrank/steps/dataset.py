"""Obtain a dataset, verify it and store it in a form that memory-maps."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say


@click.command(cls=Step)
@click.option("--name", required=True, help="Name of the entry under `dataset` in params.yaml.")
@click.option(
    "--settings", type=Json(), default="{}", help="That entry, JSON; default: what its name says."
)
@click.option("--output", type=Path, required=True, help="Output: folder of arrays and an index.")
def dataset(name: str, settings: dict[str, Any], output: Path) -> None:
    """Obtain a dataset and store it."""
    from lowrank.config.dataset import DatasetSettings
    from lowrank.data.folders import outputs_of, store_folders
    from lowrank.data.sources import DATASETS, refuse_foreign_folder, store_dataset
    from lowrank.errors import UserError
    from lowrank.files import read_json

    wanted = DatasetSettings.model_validate(settings)
    try:
        kind = wanted.kind_of(name)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    # Told before a download rather than after it.
    refuse_foreign_folder(output)
    if kind == "imagefolder":
        store_folders(output, name, wanted, say)
    else:
        known = DATASETS[kind]
        outputs = outputs_of(known.classes, wanted.outputs, f"dataset.{name}.outputs")
        arrays = known.obtain(Path(wanted.search), say)
        store_dataset(output, name, known.classes, arrays, outputs)
    splits = read_json(output / "dataset.json")["splits"]
    say(
        f"{splits['train']['images']} training and {splits['test']['images']} test images stored "
        f"in {output}"
    )


if __name__ == "__main__":
    dataset()
