"""Obtain a dataset, verify it and store it as arrays that can be memory-mapped."""

from pathlib import Path

import click

from lowrank.config.dataset import DatasetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, output_path, parameter, wildcard


@click.command(cls=Step)
@wildcard("dataset", "Name of the entry under `dataset` in params.yaml.")
@parameter(
    "settings",
    "That entry, JSON. By default, the name selects the dataset.",
    Json(DatasetSettings),
    default="{}",
)
@output_path("output", "Folder of arrays and an index.")
def dataset(
    dataset: str,
    settings: DatasetSettings,
    output: Path,
) -> None:
    """Obtain a dataset, verify it and store it."""
    from lowrank.data.folders import outputs_of, store_folders
    from lowrank.data.sources import DATASETS, refuse_foreign_folder, store_dataset
    from lowrank.errors import UserError
    from lowrank.files import read_json

    try:
        kind = settings.kind_of(dataset)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    # Check before a download, not after it.
    refuse_foreign_folder(output)
    if kind == "imagefolder":
        store_folders(output, dataset, settings, say)
    elif kind == "arrays":
        from lowrank.data.input_arrays import store_arrays

        store_arrays(output, dataset, settings, say)
    elif kind == "function":
        from lowrank.data.own_functions import store_function

        store_function(output, dataset, settings, say)
    else:
        source = DATASETS[kind]
        outputs = outputs_of(source.classes, settings.outputs, f"dataset.{dataset}.outputs")
        arrays = source.obtain(Path(settings.search), say)
        store_dataset(output, dataset, source.classes, arrays, outputs)
    splits = read_json(output / "dataset.json")["splits"]
    say(
        f"{splits['train']['images']} training and {splits['test']['images']} test images stored "
        f"in {output}"
    )


if __name__ == "__main__":
    dataset()
