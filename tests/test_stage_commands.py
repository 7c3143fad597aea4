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

SNAKEMAKE = ["snakemake", "--workflow-profile", "profiles/dvc", "--"]


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
    _, started = run("benchmark@vgg16-tucker-local", target)
    assert started == [[*SNAKEMAKE, "build/vgg16/tucker/benchmark/local.json"]]


@pytest.mark.parametrize(
    ("stage", "targets"),
    [
        ("settle@vgg16-lowrank", ["build/vgg16/lowrank/search/chosen.json"]),
        ("settle@vgg16-tucker", ["data/networks/vgg16.json"]),
        # The factors of a search belong to its trials.
        ("decompose@vgg16-lowrank", ["data/networks/vgg16.json"]),
        (
            "finetune@vgg16-lowrank",
            ["build/vgg16/lowrank/rounds/1/model.safetensors"],
        ),
        ("finetune@vgg16-musco", ["build/vgg16/musco/rounds/3/model.safetensors"]),
        ("finetune@vgg16-int8", ["data/networks/vgg16.json"]),
    ],
)
def test_files_that_depend_on_the_method_are_computed(run, stage, targets):
    _, started = run(stage)
    assert started == [[*SNAKEMAKE, *targets]]


def test_each_layer_that_has_factors_is_a_file(run):
    _, (command,) = run("decompose@resnet20-tucker")
    folder = "build/resnet20/tucker/first/factors"
    assert command[:4] == SNAKEMAKE
    assert len(command) > 20
    assert f"{folder}/blocks.0.conv1.safetensors" in command
    assert all(path.startswith(folder) for path in command[4:])


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
