"""The stages that are recorded in dvc.lock after a run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lowrank.core.stored import write_tensors
from lowrank.graph import recording
from lowrank.graph.pipeline import Graph
from lowrank.graph.recording import record_run, remove_stale_files
from lowrank.settings.document import read_document

ROOT = Path(__file__).parents[2]
RANKS = "build/vgg16/tucker/first/ranks.json"


def job(name: str, *output: str, **wildcards: str) -> SimpleNamespace:
    rule = SimpleNamespace(name=name)
    return SimpleNamespace(rule=rule, output=output, wildcards=SimpleNamespace(**wildcards))


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_only_factors_and_rounds_of_earlier_settings_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = [RANKS, "build/vgg16/tucker/first/factors/conv1.safetensors"]
    outputs += ["build/vgg16/tucker/rounds/1/model.safetensors"]
    stale = [
        "build/vgg16/tucker/first/factors/conv9.safetensors",
        "build/vgg16/tucker/rounds/2/model.safetensors",
        "build/vgg16/tucker/rounds/2/metrics.json",
    ]
    kept = ["build/vgg16/cpsvd/rounds/2/model.safetensors", "build/vgg16/tucker/rounds/notes.txt"]
    # The user's own files.
    kept += [f"build/vgg16/tucker/rounds/{name}" for name in ("mine.json", "2/mine.json")]
    kept += [f"build/vgg16/tucker/first/factors/{name}" for name in ("mine.safetensors", "a.json")]
    touch(*outputs, *stale, *kept)
    for name in stale:
        if name.endswith(".safetensors"):
            write_tensors(name, {}, {"form": "tucker2"})
    write_tensors(kept[-2], {"mine": np.zeros(3)})
    remove_stale_files([job("any", *outputs)])
    assert all(Path(name).exists() for name in outputs + kept)
    assert not any(Path(name).exists() for name in stale)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return a list that collects recorded stages, in a folder with DVC and params.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    Path(".dvc").mkdir()
    touch("build/vgg16/original/outputs.safetensors", "dvc.yaml")
    stages = []
    monkeypatch.setattr(recording, "commit", lambda names, graph: stages.extend(names))
    return stages


def config(**changes) -> dict:
    return dict(read_document("params.yaml").entries) | changes


JOBS = [
    job("summarize", RANKS, model="vgg16", method="tucker"),
    job("summarize", model="vgg16", method="musco"),
    job("summarize", model="resnet20", method="tucker"),
    job("export_onnx", model="vgg16", method="cpsvd"),
    job("overview"),
]


def run(recorded: list[str], document: dict) -> list[str]:
    record_run(JOBS, document, Graph.load(), print)
    return recorded


def test_completed_variants_of_the_matrix_are_recorded(recorded):
    # musco is not in the matrix. For resnet20, the outputs of the original are missing.
    assert run(recorded, config()) == ["overview", "summarize@vgg16-tucker"]


def test_nothing_is_recorded_if_parameters_differ_from_params_yaml(recorded):
    changed = config()["decompose"] | {"threads": 2}
    assert run(recorded, config(decompose=changed)) == []


def test_nothing_is_recorded_inside_dvc_or_without_it(recorded, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "summarize@vgg16-tucker")
    assert run(recorded, config()) == []
    monkeypatch.delenv("DVC_STAGE")
    # A folder in which this workflow is a module has no stages.
    Path("dvc.yaml").unlink()
    assert run(recorded, config()) == []
    touch("dvc.yaml")
    Path(".dvc").rmdir()
    assert run(recorded, config()) == []
