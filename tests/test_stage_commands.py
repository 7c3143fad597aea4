"""The commands of dvc.yaml, which a shell runs before `lowrank` checks anything."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lowrank.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "dvc.yaml").read_text())
COMMANDS = {name: stage.get("do", stage)["cmd"] for name, stage in DOCUMENT["stages"].items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_contains_text_from_params_yaml(name):
    # `dataset_name` is defined in dvc.yaml itself.
    assert set(re.findall(r"\${(.*?)}", COMMANDS[name])) <= {"dataset_name"}


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the command of a stage and records what it would start."""
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


def test_the_names_come_from_the_name_of_the_stage(run):
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
def test_names_that_are_not_in_params_yaml_are_an_error(run, stage):
    done, started = run(stage, "build/{model}/{method}/model.onnx")
    assert done.exit_code == 1
    assert f"the stage `{stage}` has a name that is not in params.yaml" in done.output
    assert started == []


def test_the_command_fails_outside_dvc(run):
    done, started = run("", "build/{model}/original/model.onnx")
    assert "Run `dvc repro`" in done.output
    assert started == []
