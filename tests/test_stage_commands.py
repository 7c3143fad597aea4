"""The commands of dvc.yaml, which a shell runs before `lowrank` sees them."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lowrank.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "dvc.yaml").read_text())
COMMANDS = {name: each.get("do", each)["cmd"] for name, each in DOCUMENT["stages"].items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_holds_what_params_yaml_says(name):
    # `dataset_name` stands in dvc.yaml itself.
    assert set(re.findall(r"\${(.*?)}", COMMANDS[name])) <= {"dataset_name"}


@pytest.fixture
def run(monkeypatch):
    """What the command of a stage would start."""
    monkeypatch.chdir(ROOT)
    started = []

    def start(program, command):
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", start)
    monkeypatch.setattr("os.execvp", start)

    def invoke(stage, *arguments):
        monkeypatch.setenv("DVC_STAGE", stage)
        done = CliRunner().invoke(main, ["stage", *arguments])
        return done, started

    return invoke


def test_the_names_come_from_the_stage(run):
    target = "build/{model}/{method}/benchmark/{device}.json"
    _, started = run("benchmark@vgg16-tucker-local", target, "--", "--forcerun", "benchmark")
    before = ["snakemake", "--workflow-profile", "profiles/dvc", "--forcerun", "benchmark"]
    assert started == [[*before, "--", "build/vgg16/tucker/benchmark/local.json"]]


@pytest.mark.parametrize(
    "stage",
    [
        "finetune@vgg16",
        "finetune@x;touch pwned;#-tucker",
        "finetune@vgg16-tucker-local",
        "finetune",
    ],
)
def test_names_that_params_yaml_does_not_have(run, stage):
    done, started = run(stage, "build/{model}/{method}/model.onnx")
    assert done.exit_code == 1
    assert f"the stage `{stage}` names what params.yaml does not have" in done.output
    assert started == []


def test_outside_of_dvc(run):
    done, started = run("", "build/{model}/original/model.onnx")
    assert "Run `dvc repro`" in done.output
    assert started == []
