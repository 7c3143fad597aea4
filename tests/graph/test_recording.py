"""What is recorded in dvc.lock after a run, and what is not."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lowrank.config.document import read_document
from lowrank.core.stored import write_tensors
from lowrank.graph import recording
from lowrank.graph.pipeline import Graph
from lowrank.graph.recording import record_run, remove_strangers

ROOT = Path(__file__).parents[2]
RANKS = "build/vgg16/tucker/first/ranks.json"


def job(rule: str, *output: str, **wildcards: str) -> SimpleNamespace:
    named = SimpleNamespace(name=rule)
    return SimpleNamespace(rule=named, output=output, wildcards=SimpleNamespace(**wildcards))


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_factors_and_rounds_of_an_earlier_choice_go_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [RANKS, "build/vgg16/tucker/first/factors/conv1.safetensors"]
    made += ["build/vgg16/tucker/rounds/1/model.safetensors"]
    strangers = [
        "build/vgg16/tucker/first/factors/conv9.safetensors",
        "build/vgg16/tucker/rounds/2/model.safetensors",
        "build/vgg16/tucker/rounds/2/metrics.json",
    ]
    others = ["build/vgg16/cpsvd/rounds/2/model.safetensors", "build/vgg16/tucker/rounds/notes.txt"]
    # A user's own.
    others += [f"build/vgg16/tucker/rounds/{name}" for name in ("mine.json", "2/mine.json")]
    others += [
        f"build/vgg16/tucker/first/factors/{name}" for name in ("mine.safetensors", "a.json")
    ]
    touch(*made, *strangers, *others)
    for name in strangers:
        if name.endswith(".safetensors"):
            write_tensors(name, {}, {"form": "tucker2"})
    write_tensors(others[-2], {"mine": np.zeros(3)})
    remove_strangers([job("any", *made)])
    assert all(Path(name).exists() for name in made + others)
    assert not any(Path(name).exists() for name in strangers)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The stages that would be recorded, in a folder with DVC and this repository's params.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    Path(".dvc").mkdir()
    touch("build/vgg16/original/outputs.safetensors")
    stages = []
    monkeypatch.setattr(recording, "commit", lambda found, graph: stages.extend(found))
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
    # Not musco, which is not in the matrix, nor resnet20, whose original's outputs DVC would miss.
    assert run(recorded, config()) == ["overview", "summarize@vgg16-tucker"]


def test_nothing_is_recorded_under_parameters_that_params_yaml_does_not_have(recorded):
    changed = config()["decompose"] | {"threads": 2}
    assert run(recorded, config(decompose=changed)) == []


def test_nothing_is_recorded_inside_dvc_or_without_it(recorded, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "summarize@vgg16-tucker")
    assert run(recorded, config()) == []
    monkeypatch.delenv("DVC_STAGE")
    Path(".dvc").rmdir()
    assert run(recorded, config()) == []
