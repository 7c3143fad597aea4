import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank.config.training import TrainingSettings
from lowrank.errors import UserError
from lowrank.training import several_processes
from lowrank.training.several_processes import process_count

# Starts two processes, as a step does.
START = """
import sys
from lowrank.errors import UserError
from lowrank.training.several_processes import run_copies
try:
    run_copies([sys.executable, *sys.argv[1:]], 2, "cpu")
except UserError as error:
    sys.exit(str(error))
"""

# Trains a network, alone or as one of two processes, and writes its weights and curve.
TRAIN = """
import json, os, signal, sys
from dataclasses import asdict
from pathlib import Path
import torch
from lowrank.config.training import TrainingSettings
from lowrank.data.datasets import open_dataset
from lowrank.surgery.states import State
from lowrank.tasks import get_task
from lowrank.training import loop
from lowrank.training.loop import train
from lowrank.training.several_processes import joined
from lowrank.zoo import NetworkSpec
sys.path.append(sys.argv[1])
from test_several_processes import network_of

data, folder, options = open_dataset(Path(sys.argv[2])), Path(sys.argv[3]), json.loads(sys.argv[4])
settings = TrainingSettings.model_validate(options["settings"])
torch.set_num_threads(1)
loop.SECONDS_BETWEEN_LINES = -1.0

def say(line):
    print(line, file=sys.stderr, flush=True)
    if line.startswith("step 7/") and "signal_to" in options:
        itself = options["signal_to"] == "itself"
        os.kill(os.getpid() if itself else os.getppid(), signal.SIGTERM)

with joined("cpu") as members:
    network = network_of(options["network"])
    report = train(
        get_task("classification"), network, NetworkSpec("toy", (3, 32, 32), 10), data, settings,
        state_path=folder / "state.pt", processes=members, say=say,
    )
    if members.is_first:
        torch.save(network.state_dict(), folder / "weights.pt")
        (folder / "curve.json").write_text(json.dumps([asdict(point) for point in report.curve]))
"""

SETTINGS = {
    "steps": 24,
    "batch_size": 40,
    "learning_rate": 0.05,
    "precision": "float32",
    "device": "cpu",
    "curve_every_steps": 4,
}


def network_of(kind):
    """Return a small network, `plain` or with batch normalization and a parameter without use."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    if kind == "normalized":
        layers.insert(1, nn.BatchNorm2d(8))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    if kind == "normalized":
        network.without_use = nn.Parameter(torch.ones(3))
        network.forward = lambda images: nn.Sequential(*network.children())(images)
    return network


def start(arguments, *, copies):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = ["-c", START] if copies else []
    return subprocess.run(
        [sys.executable, *first, *arguments], text=True, capture_output=True, env=environment
    )


@pytest.fixture
def run(tiny_folder, tmp_path):
    """Return a function that trains and returns its weights, curve and printed lines."""

    def train_once(name, *, copies, network="plain", status=0, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        script = tmp_path / "train.py"
        script.write_text(TRAIN)
        settings = SETTINGS | options.pop("settings", {})
        document = json.dumps({"settings": settings, "network": network} | options)
        arguments = [
            str(script),
            str(Path(__file__).parent),
            str(tiny_folder),
            str(folder),
            document,
        ]
        result = start(arguments, copies=copies)
        assert result.returncode == status, result.stderr
        if status:
            return result.stderr
        curve = json.loads((folder / "curve.json").read_text())
        return torch.load(folder / "weights.pt"), curve, result.stderr

    return train_once


@pytest.mark.seconds
def test_two_processes_train_on_the_same_batches_as_one(run):
    weights, curve, lines = run("one", copies=False)
    weights_of_two, curve_of_two, lines_of_two = run("two", copies=True)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=1e-3, atol=1e-4)
    assert [point["loss"] for point in curve_of_two] == pytest.approx(
        [point["loss"] for point in curve], rel=1e-4
    )
    assert [point["train_percent"] for point in curve_of_two] == pytest.approx(
        [point["train_percent"] for point in curve], abs=1.0
    )
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert "each of 2 processes" in lines_of_two
    assert "processes" not in lines
    # Only the first process prints.
    assert lines_of_two.count("step 24/24") == 1


@pytest.mark.seconds
def test_two_processes_train_with_all_settings(run):
    settings = {
        "freeze": {"layers": 0.5, "after": 0.5},
        "average_last": 0.5,
        "validate_every_steps": 8,
        "clip_norm": 0.1,
    }
    weights, curve, _ = run("two", copies=True, network="normalized", settings=settings)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert torch.equal(weights["without_use"], torch.ones(3))
    changed = weights["0.weight"] - network_of("normalized").state_dict()["0.weight"]
    assert changed.abs().max() > 1e-4
    assert [bool(point["validation_percent"]) for point in curve] == [False, True] * 2 + [False] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("receiver", "status"), [("itself", 1), ("launcher", 130)])
def test_signal_ends_all_after_the_same_step_and_the_run_resumes(run, receiver, status):
    options = {"copies": True, "network": "normalized"}
    expected, expected_curve, _ = run("undisturbed", **options)
    printed = run("resumed", status=status, signal_to=receiver, **options)
    assert "SIGTERM: saved the state after step" in printed
    weights, curve, printed = run("resumed", **options)
    assert "resumed from the state saved at step" in printed
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert curve == expected_curve


@pytest.mark.seconds
def test_failure_of_a_process_ends_all_with_its_status():
    fails = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    result = start(["-c", fails], copies=True)
    assert (result.returncode, result.stderr) == (7, "")


@pytest.mark.seconds
def test_killed_process_is_reported():
    dies = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)"
    )
    result = start(["-c", dies], copies=True)
    assert result.returncode == 1
    assert "process 2 of 2 was ended by SIGKILL" in result.stderr


def settings_of(**changes):
    return TrainingSettings.model_validate(SETTINGS | changes)


def test_number_of_processes(monkeypatch):
    assert process_count(settings_of()) == 1
    assert process_count(settings_of(processes=4)) == 4
    # Without a GPU.
    assert process_count(settings_of(processes="auto")) == 1
    assert process_count(settings_of(processes=4, steps=0)) == 1
    monkeypatch.setattr(several_processes, "device_type", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    # 3 does not divide 40.
    assert process_count(settings_of(processes="auto")) == 2
    assert process_count(settings_of(processes=2)) == 2
    with pytest.raises(UserError, match="`processes` is 4, but this job sees 3 GPUs"):
        process_count(settings_of(processes=4))


def test_batch_must_be_a_multiple_of_the_processes():
    with pytest.raises(ValueError, match=r"`batch_size` \(40\) must be a multiple of `processes`"):
        settings_of(processes=3)
