"""Steps that run the network on many images, on the processor of their setting `device`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy import toy

from lowrank.cli import main
from lowrank.core.stored import read_tensors
from lowrank.files import read_json, write_json
from lowrank.surgery.finding import layer_table
from lowrank.surgery.states import State, write_state

LAYERS = {"conv1": "tucker1", "conv2": "tucker2", "classifier": "svd"}
STEPS = ("checkpoint", "calibrate", "select_ranks")


@pytest.fixture
def run(tmp_path: Path, tiny_folder, register_network, restored_torch, monkeypatch):
    """Return a function that runs a step with a `device` and returns its result."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    spec = register_network(toy, "toy")
    network = toy(seed=2)
    write_state(tmp_path / "original.safetensors", State(spec, network, {}))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    write_json(tmp_path / "table.json", layer_table("toy").to_json())
    measured = {"select": "sensitivity", "ratio": 1.5, "trial_ratio": 2.0, "images": 40}
    state = {"state": tmp_path / "original.safetensors", "table": tmp_path / "table.json"}
    options = {
        "checkpoint": {
            "weights": tmp_path / "weights.pth",
            **{name: tmp_path / f"{name}.json" for name in ("metrics", "replaceable")},
            "state": tmp_path / "converted.safetensors",
        },
        "calibrate": state
        | {
            "layers": json.dumps(LAYERS),
            "images": 40,
            "moments": tmp_path / "moments.safetensors",
        },
        "select_ranks": state
        | {
            "layers": json.dumps(LAYERS),
            "all-layers": json.dumps(LAYERS),
            "settings": json.dumps(measured),
            "plan": tmp_path / "ranks.json",
        },
    }

    def invoke(step: str, device: str | None):
        own = options[step] | {"network": "toy", "dataset": tiny_folder, "threads": 1}
        own |= {} if device is None else {"device": device}
        return CliRunner().invoke(main, [step, *(f"--{key}={own[key]}" for key in own)])

    return invoke


def outputs(folder: Path) -> dict[str, dict]:
    """Return the numbers that the three steps wrote."""
    plan = read_json(folder / "ranks.json")
    return {
        "metrics": read_json(folder / "metrics.json")["accuracy"],
        "moments": read_tensors(folder / "moments.safetensors"),
        "ranks": {layer["name"]: layer["ranks"] for layer in plan["layers"]},
    }


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("step", STEPS)
def test_a_missing_gpu_is_an_error(run, step: str, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    result = run(step, "cuda")
    assert result.exit_code != 0
    assert "PyTorch finds no 'cuda' on this machine. Use 'auto' or 'cpu'." in result.output
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


@pytest.mark.parametrize("step", STEPS)
def test_the_default_is_the_cpu_on_every_machine(run, step: str, monkeypatch):
    names = []

    def pick(name: str) -> torch.device:
        names.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("lowrank.training.hardware.pick_device", pick)
    for device in (None, "auto"):
        result = run(step, device)
        assert result.exit_code == 0, result.output
    assert names == ["cpu", "auto"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_measures_what_the_cpu_measures(run, tmp_path: Path):
    measured = {}
    for device in ("cpu", "cuda"):
        for step in STEPS:
            result = run(step, device)
            assert result.exit_code == 0, result.output
        measured[device] = outputs(tmp_path)
    cpu, gpu = measured["cpu"], measured["cuda"]
    assert gpu["ranks"] == cpu["ranks"]
    # An image of 100 may be classified differently.
    assert gpu["metrics"] == pytest.approx(cpu["metrics"], abs=0.02)
    for name, values in cpu["moments"].items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(gpu["moments"][name], values, atol=1e-2 * scale, err_msg=name)
