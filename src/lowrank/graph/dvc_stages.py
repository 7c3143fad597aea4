"""Outputs of the stages in dvc.yaml, and the files that DVC must watch.

DVC decides which stages are stale, but it does not delete their outputs (`persist`), because
another run may need them at that time. The `snakemake` that a stage starts deletes them after it
has taken the lock.
"""

import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lowrank.config.params import Params
from lowrank.core.delivery import remove_own_files
from lowrank.errors import UserError
from lowrank.graph.code_digests import files_of_module

# Folders of a variant with a file for each factored layer, with a folder for each round, and with
# the trials of a search. They are empty for a method without factors, rounds or a search.
MAY_BE_EMPTY = ("first/factors", "rounds", "search")

# Outputs to delete, by stage. Folders are deleted with everything in them, so nothing remains from
# earlier settings. Datasets are not listed, because they are replaced when the new one is complete.
# Layer tables are not listed, because they are always current.
_FIELDS = ("model", "method", "device")
_OUTPUTS = {
    "code": ("build/code.json",),
    "splits": ("build/{model}/original/splits",),
    "describe_device": ("build/devices/{device}.json",),
    "checkpoint": tuple(
        f"build/{{model}}/original/{name}"
        for name in ("model.safetensors", "metrics.json", "replaceable.json")
    ),
    "settle": ("build/{model}/{method}/search",),
    "select_ranks": tuple(
        f"build/{{model}}/{{method}}/{name}"
        for name in ("first/ranks.json", "first/draft.json", "first/latencies", "latencies")
    ),
    "decompose": ("build/{model}/{method}/first/factors",),
    "teacher_outputs": ("build/{model}/original/outputs.safetensors",),
    "finetune": ("build/{model}/{method}/rounds",),
    "export_original": (
        "build/{model}/original/model.onnx",
        "build/{model}/original/export.json",
    ),
    "export_onnx": ("build/{model}/{method}/model.onnx", "build/{model}/{method}/export.json"),
    "quantize_original": ("build/{model}/original/int8",),
    "quantize": ("build/{model}/{method}/int8",),
    "benchmark": ("build/{model}/{method}/benchmark/{device}.json",),
    "summarize": (
        "models/{model}_{method}",
        "results/{model}_{method}.json",
        "results/metrics/{model}_{method}.json",
        "results/plots/{model}_{method}",
    ),
    "overview": (
        *("results/summary.csv", "results/summary.md", "results/pictures/summary.html"),
        "results/pictures/accuracy_by_latency.svg",
        *("results/pictures/accuracy_by_macs.svg", "results/pictures/energy.svg"),
    ),
}


def running_stage() -> str | None:
    """Return the DVC stage that this process runs in, such as `finetune@vgg16-tucker`, or None."""
    return os.environ.get("DVC_STAGE") or None


def outputs_of(stage: str, params: Params) -> list[Path]:
    """Return the outputs that a stage makes from scratch; empty for an unknown stage."""
    name, _, key = stage.partition("@")
    combinations = itertools.product(params.checkpoint, params.methods, params.benchmark)
    paths = set()
    for names in (dict(zip(_FIELDS, combination, strict=True)) for combination in combinations):
        for path in _OUTPUTS.get(name, ()):
            used = [value for field, value in names.items() if f"{{{field}}}" in path]
            if "-".join(used) == key:
                paths.add(Path(path.format(**names)))
    return sorted(paths)


def remove_outputs(stage: str, params: Params) -> None:
    """Remove the outputs of a stale stage, so that Snakemake makes them again.

    Folders that stay empty for some methods are created again, because DVC requires every output
    of a stage.
    """
    for path in outputs_of(stage, params):
        if path.parts[0] == "models":
            # The folder may also be a package of the user, whose files are kept.
            remove_own_files(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.as_posix().endswith(MAY_BE_EMPTY):
            path.mkdir(parents=True)


def require_watched(files: Iterable[Path], stage: str, about: str) -> None:
    """Raise UserError unless all files are dependencies of a stage, so that DVC watches them.

    Without a dvc.yaml, nothing is checked.
    """
    document = Path("dvc.yaml")
    if not document.exists():
        return
    stages: Any = yaml.safe_load(document.read_text()).get("stages", {})
    definition = stages.get(stage, {})
    watched = [Path(str(path)) for path in definition.get("do", definition).get("deps") or []]
    here = Path.cwd()
    for file in files:
        relative = Path(os.path.relpath(file, here))
        if not any(relative == path or path in relative.parents for path in watched):
            raise UserError(
                f"dvc.yaml: {about} uses {relative}, which DVC does not watch. DVC would treat "
                "results as current after that file changes. Add a line "
                f"`- {_suggested(relative)}` to `deps` of the stage `{stage}`, and run the same "
                "command again."
            )


def require_known_data(stage: str, params: Params) -> None:
    """Raise UserError if a stage reads a dataset or folders of images that DVC does not watch."""
    name, _, key = stage.partition("@")
    if not Path("dvc.yaml").exists():
        return
    watched = _variable(yaml.safe_load(Path("dvc.yaml").read_text()), "dataset_name")
    for model in params.matrix.models:
        if (dataset := params.checkpoint[model].dataset) != watched:
            raise UserError(
                f"dvc.yaml: `dataset_name` is '{watched}', but '{model}' in `matrix.models` of "
                f"params.yaml has the dataset '{dataset}'. DVC watches one dataset, that of all "
                f"networks in the matrix. Set `dataset_name: {dataset}` and keep only networks "
                "with this dataset in `matrix.models`; Snakemake alone builds the others."
            )
    if name == "dataset":
        key = watched
        settings = params.dataset.get(key)
        if settings:
            files = [Path(file) for file in settings.own_files.values()]
            if settings.function is not None:
                files += files_of_module(settings.function.partition(":")[0])
            require_watched(files, name, f"`dataset.{key}`")
    elif name == "splits" and key in params.checkpoint:
        for entry, folder in params.checkpoint[key].own_folders.items():
            require_watched([Path(folder)], name, f"`checkpoint.{key}.{entry}`")


def _variable(document: Any, name: str) -> Any:
    """Return a variable of the `vars` section of dvc.yaml, or None."""
    return next((entry[name] for entry in document.get("vars", []) if name in entry), None)


def _suggested(path: Path) -> Path:
    """Return the folder of a package, or the file of a single module."""
    return Path(path.parts[0]) if len(path.parts) > 1 else path
