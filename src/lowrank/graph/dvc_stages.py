"""What the workflow knows of dvc.yaml: the outputs of each stage, and what DVC must watch.

DVC decides which stages are stale. It does not delete their outputs (`persist`), for it would do so
while another run may need them; the `snakemake` that a stage starts does, once it has the lock.
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

# Names of folders that hold a file for each factored layer, or each round: there may be none.
MAY_BE_EMPTY = ("factors", "rounds")

# By stage. A folder goes whole, so that nothing of an earlier choice stays in it. Not here:
# datasets, which are replaced when the new one is complete, and layer tables, which are always
# current.
_FIELDS = ("model", "method", "device")
_OUTPUTS = {
    "code": ("build/code.json",),
    "splits": ("build/{model}/original/splits",),
    "describe_device": ("build/devices/{device}.json",),
    "checkpoint": tuple(
        f"build/{{model}}/original/{name}"
        for name in ("model.safetensors", "metrics.json", "replaceable.json")
    ),
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
    """The DVC stage that this process runs in, as DVC names it: `finetune@vgg16-tucker`."""
    return os.environ.get("DVC_STAGE") or None


def outputs_of(stage: str, params: Params) -> list[Path]:
    """The outputs that a stage makes again from nothing; none for a stage that is not known."""
    name, _, key = stage.partition("@")
    choices = itertools.product(params.checkpoint, params.methods, params.benchmark)
    found = set()
    for names in (dict(zip(_FIELDS, each, strict=True)) for each in choices):
        for path in _OUTPUTS.get(name, ()):
            used = [value for field, value in names.items() if f"{{{field}}}" in path]
            if "-".join(used) == key:
                found.add(Path(path.format(**names)))
    return sorted(found)


def remove_outputs(stage: str, params: Params) -> None:
    """Remove what a stale stage made, so that Snakemake makes it again.

    Folders that a method without factors or rounds leaves empty are there afterwards: DVC wants
    every output of a stage.
    """
    for path in outputs_of(stage, params):
        if path.parts[0] == "models":
            # A user's package may have such a name.
            remove_own_files(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.name in MAY_BE_EMPTY:
            path.mkdir(parents=True)


def require_watched(files: Iterable[Path], stage: str, about: str) -> None:
    """Raise UserError unless DVC watches all files: they lie in what a stage depends on.

    Without a dvc.yaml there is nothing to check.
    """
    document = Path("dvc.yaml")
    if not document.exists():
        return
    stages: Any = yaml.safe_load(document.read_text()).get("stages", {})
    described = stages.get(stage, {})
    watched = [Path(str(path)) for path in described.get("do", described).get("deps") or []]
    here = Path.cwd()
    for file in files:
        inside = Path(os.path.relpath(file, here))
        if not any(inside == each or each in inside.parents for each in watched):
            raise UserError(
                f"dvc.yaml: {about} uses {inside}, which DVC does not watch: it would take results "
                f"for current after that file changes. Add a line `- {_suggested(inside)}` to "
                f"`deps` of the stage `{stage}`, and run the same command again."
            )


def require_known_folders(stage: str, params: Params) -> None:
    """Raise UserError where a stage reads folders of images that DVC does not watch."""
    name, _, key = stage.partition("@")
    if not Path("dvc.yaml").exists():
        return
    if name == "dataset":
        key = _variable(yaml.safe_load(Path("dvc.yaml").read_text()), "dataset_name")
        settings = params.dataset.get(key)
        folders = [settings.train, settings.validation] if settings else []
        require_watched(map(Path, filter(None, folders)), name, f"`dataset.{key}`")
    elif name == "splits" and key in params.checkpoint:
        folder = params.checkpoint[key].validation.folder
        folders = [Path(folder)] if folder else []
        require_watched(folders, name, f"`checkpoint.{key}.validation`")


def _variable(document: Any, name: str) -> Any:
    """A variable at the top of dvc.yaml."""
    return next((each[name] for each in document.get("vars", []) if name in each), None)


def _suggested(path: Path) -> Path:
    """A package as a whole, a module by itself."""
    return Path(path.parts[0]) if len(path.parts) > 1 else path
