"""Check the shipped checkpoints against their provenance and params.yaml."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from projects import ROOT
from safetensors import safe_open

from lowrank.config.reading import load_params
from lowrank.config.training import PretrainSettings
from lowrank.files import read_json
from lowrank.zoo import create_network
from lowrank.zoo.weight_files import load_weights, read_weights

FOLDER = ROOT / "data/checkpoints"
# Minimum top-1 accuracy on test images, in percent.
SHIPPED = {"vgg16": 93.0, "resnet20": 91.0, "resnet56": 92.0}
MEBIBYTE = 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_float16_and_match_the_network(name: str):
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    load_weights(create_network(name), read_weights(path), source=str(path))


@pytest.mark.parametrize("name", SHIPPED)
def test_provenance_contains_the_recipe_of_params_yaml(name: str):
    provenance = read_json(FOLDER / f"{name}.json")
    recipe = load_params(ROOT / "params.yaml").pretrain[name]
    # When the files were written, settings of other schedules were accepted and recorded too.
    recorded = provenance["recipe"]
    unused = set() if recorded["schedule"] == "step" else {"step_at", "step_factor"}
    used = {key: value for key, value in recorded.items() if key not in unused}
    assert PretrainSettings.model_validate(used) == recipe
    assert set(provenance["accuracy"]) == {"validation", "test"}
    assert provenance["accuracy"]["test"] >= SHIPPED[name]
    assert provenance["seconds"] > 0
    assert len(provenance["commit"]) == 40  # a clean working tree


def test_checkpoints_are_small_enough_for_git():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 31 * MEBIBYTE


def test_the_readme_has_a_command_for_each_variant_of_the_matrix():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    matrix = itertools.product(params["matrix"]["models"], params["matrix"]["methods"])
    commands = re.findall(r"`make results/(\w+)\.json` \|$", (ROOT / "README.md").read_text(), re.M)
    assert sorted(commands) == sorted(f"{model}_{method}" for model, method in matrix)
    for name in params["matrix"]["models"]:
        assert (ROOT / Path(params["checkpoint"][name]["weights"])).is_file()
