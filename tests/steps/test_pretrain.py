"""The step that trains networks from scratch or from earlier weights."""

import json

import pytest
import torch
from click.testing import CliRunner
from toy import Toy

from lowrank.files import read_json, sha256_of
from lowrank.steps.pretrain import pretrain
from lowrank.zoo.weight_files import read_weights

RECIPE = {"steps": 4, "batch_size": 20, "learning_rate": 0.05, "threads": 1, "curve_every_steps": 2}


@pytest.fixture
def run(tmp_path, tiny_folder, register_network, restored_torch):
    register_network(Toy, "toy")

    def run_once(name, start="", **recipe):
        arguments = {
            "network": "toy",
            "dataset": tiny_folder,
            "settings": json.dumps(RECIPE | recipe),
            "start": start,
            "state": tmp_path / f"{name}.pt",
            "weights": tmp_path / f"{name}.safetensors",
            "provenance": tmp_path / f"{name}.json",
        }
        result = CliRunner().invoke(pretrain, [f"--{k}={v}" for k, v in arguments.items()])
        assert result.exit_code == 0, result.output
        return arguments["weights"], read_json(arguments["provenance"])

    return run_once


def test_the_same_recipe_gives_the_same_bytes(run):
    first, provenance = run("first")
    second, _ = run("second")
    assert first.read_bytes() == second.read_bytes()
    assert provenance["recipe"]["learning_rate"] == 0.05
    assert provenance["steps"] == 4
    assert "start" not in provenance


def test_a_warm_restart_starts_from_earlier_weights_and_records_them(run):
    first, _ = run("first")
    second, provenance = run("second", start=first, steps=0)
    before, after = read_weights(first), read_weights(second)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert provenance["start"]["weights_sha256"] == sha256_of(first)
    assert provenance["start"]["provenance"]["steps"] == 4
