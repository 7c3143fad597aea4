"""The shipped checkpoints agree with their provenance and with params.yaml."""

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
SHIPPED = {"vgg16": 93.0, "resnet20": 91.0}  # Minimum top-1 accuracy on the test images, percent.
MEBIBYTE = 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_half_precision_and_fit_the_network(name: str):
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    load_weights(create_network(name), read_weights(path), source=str(path))


@pytest.mark.parametrize("name", SHIPPED)
def test_provenance_states_the_recipe_of_params_yaml(name: str):
    provenance = read_json(FOLDER / f"{name}.json")
    recipe = load_params(ROOT / "params.yaml").pretrain[name]
    # The version that wrote these files also recorded settings of other schedules.
    recorded = provenance["recipe"]
    unused = set() if recorded["schedule"] == "step" else {"step_at", "step_factor"}
    used = {key: value for key, value in recorded.items() if key not in unused}
    assert PretrainSettings.model_validate(used) == recipe
    assert set(provenance["accuracy"]) == {"validation", "test"}
    assert provenance["accuracy"]["test"] >= SHIPPED[name]
    assert provenance["seconds"] > 0
    assert len(provenance["commit"]) == 40  # Without `-dirty`: a clean working tree.


def test_checkpoints_are_small_enough_for_git():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 30 * MEBIBYTE


def test_the_default_matrix_is_the_one_in_the_readme():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["matrix"]["models"] == ["vgg16", "resnet20"]
    assert params["matrix"]["methods"] == ["tucker", "cpsvd", "spatial_svd"]
    for name in params["matrix"]["models"]:
        assert (ROOT / Path(params["checkpoint"][name]["weights"])).is_file()
