"""The step that converts trained weights and measures them."""

import json

import mynet
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from photos import write_flat_photos
from toy import assert_same_weights, toy
from vit import vit

from lowrank.cli import main
from lowrank.config.dataset import DatasetSettings
from lowrank.config.network_source import NetworkSource
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.data.folders import store_folders
from lowrank.data.sources import store_dataset
from lowrank.evaluation.network import value_of
from lowrank.files import read_json
from lowrank.steps.checkpoint import checkpoint
from lowrank.surgery.states import read_state
from lowrank.tasks import TASKS, get_task
from lowrank.zoo.plain import fold
from lowrank.zoo.registry import NetworkSpec

TASK = get_task("classification")


@pytest.fixture
def run(tmp_path, tiny_folder, register_network, restored_torch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    register_network(toy, "toy")

    def invoke(weights, network="toy", dataset=tiny_folder, splits=""):
        arguments = {
            "network": network,
            "weights": weights,
            "dataset": dataset,
            "splits": splits,
            "threads": 1,
            "state": tmp_path / "model.safetensors",
            "metrics": tmp_path / "metrics.json",
            "replaceable": tmp_path / "replaceable.json",
        }
        return CliRunner().invoke(checkpoint, [f"--{k}={v}" for k, v in arguments.items()])

    return invoke


def test_weights_are_converted_and_measured(tmp_path, run, tiny_data):
    network = toy(seed=4)
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "any.pth")
    result = run(tmp_path / "any.pth")
    assert result.exit_code == 0, result.output
    state = read_state(tmp_path / "model.safetensors", NetworkSource(network="toy"))
    assert_same_weights(state.network, network)
    assert state.factored == {}
    accuracy = read_json(tmp_path / "metrics.json")["accuracy"]
    assert accuracy["test"] == value_of(TASK, network, tiny_data.test, state.spec)
    assert accuracy["validation"] == value_of(TASK, network, tiny_data.validation, state.spec)


class WithoutLabels(type(TASK)):
    name = "without_labels"
    needs_labels = False


def test_a_task_that_needs_labels_on_images_without_labels(tmp_path, run):
    flat = write_flat_photos(tmp_path / "flat", 12)
    settings = DatasetSettings(kind="imagefolder", train=str(flat))
    store_folders(tmp_path / "made", "photos", settings, lambda line: None)
    # The error comes before the weights are read.
    with TASKS.added(WithoutLabels()):
        result = run(tmp_path / "no_such.pth", dataset=tmp_path / "made")
    assert result.exit_code == 1
    assert "measuring accuracy needs labels, but these images have none: " in result.stderr
    assert f"{flat} has no sub-folders for its classes. Use images with one sub-" in result.stderr
    assert "set `checkpoint.<model>.task` to a task that needs no labels: " in result.stderr
    assert "without_labels" in result.stderr


@pytest.mark.parametrize("stored", ["pytorch", "split"])
def test_projections_of_attention_become_layers(tmp_path, run, register_network, stored):
    register_network(vit, "vit")
    network = vit(seed=4)
    expected = network.eval()(torch.ones(1, 3, 32, 32))
    if stored == "split":
        fold(network)
    torch.save(network.state_dict(), tmp_path / "any.pth")
    result = run(tmp_path / "any.pth", "vit")
    assert result.exit_code == 0, result.output
    assert "folded 4 tensors" in result.stderr
    assert "14 of 14 layers can be replaced" in result.stderr
    assert read_json(tmp_path / "replaceable.json")["stays_dense"] == {}
    state = read_state(tmp_path / "model.safetensors", NetworkSource(network="vit"))
    fold(network)
    assert_same_weights(state.network, network)
    torch.testing.assert_close(state.network.eval()(torch.ones(1, 3, 32, 32)), expected)


def test_weights_of_another_architecture_leave_no_outputs(tmp_path, run):
    weights = toy().state_dict() | {"conv1.weight": torch.ones(8, 3, 5, 5)}
    torch.save(weights, tmp_path / "any.pth")
    result = run(tmp_path / "any.pth")
    assert result.exit_code == 1
    assert "tensor 'conv1.weight' has shape (8, 3, 5, 5)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["any.pth"]


def test_a_users_own_network(tmp_path, run):
    torch.manual_seed(0)
    network = mynet.build(width=8)
    torch.save({"model": network.state_dict()}, tmp_path / "any.pt")
    source = {"factory": "mynet:build", "arguments": {"width": 8}, "input_shape": [3, 32, 32]}
    result = run(tmp_path / "any.pt", json.dumps(source))
    assert result.exit_code == 0, result.output
    state = read_state(tmp_path / "model.safetensors", NetworkSource.parse(source))
    assert state.source == NetworkSource.parse(source)
    assert_same_weights(state.network, network)


def test_layers_that_cannot_be_replaced_are_named(tmp_path, run, register_network):
    """The network applies an activation only after a convolution of its own type.

    With factors in the place of the convolution, the activation is missing.
    """
    register_network(Typed, "typed")
    torch.manual_seed(0)
    torch.save(Typed().state_dict(), tmp_path / "any.pth")
    done = run(tmp_path / "any.pth", "typed")
    assert done.exit_code == 0, done.output
    document = read_json(tmp_path / "replaceable.json")
    assert set(document["stays_dense"]) == {"first"}
    assert "first stays as it is: exact factors change the network's outputs" in done.stderr
    assert "1 of 2 layers can be replaced" in done.stderr


class Typed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 10)

    def forward(self, images):
        features = self.first(images)
        if isinstance(self.first, torch.nn.Conv2d):
            features = torch.relu(features)
        return self.head(features.mean((2, 3)))


@pytest.fixture
def noise(tmp_path):
    """Create a dataset of noise with random classes, which a network can only memorize."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 400), ("test", 200)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 10, count).astype(np.uint8)
    store_dataset(tmp_path / "noise", "noise", [str(n) for n in range(10)], arrays)
    return tmp_path / "noise"


@pytest.fixture
def overfitted(noise):
    """Train weights on the images that are held out for choices."""
    network = toy(seed=1)
    split = open_dataset(noise).validation
    images, labels = EvaluationBatches(split, NetworkSpec("toy", (3, 32, 32), 10))[0]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    torch.save(network.state_dict(), noise.parent / "overfitted.pth")
    return noise.parent / "overfitted.pth"


def test_weights_that_were_trained_on_the_validation_images_cause_a_warning(
    tmp_path, run, noise, overfitted
):
    result = run(overfitted, dataset=noise)
    assert result.exit_code == 0, result.output
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["accuracy"]["validation"] > 90 > 40 > metrics["accuracy"]["test"]
    assert metrics["reported"] == {"from": "test", "images": 200}
    warning = metrics["validation"].pop("warning")
    assert metrics["validation"] == {"from": "train", "images": 40}
    assert "probably trained on the validation images" in warning
    assert "`validation: {from: test, images: 100}`" in warning
    assert f"warning: {warning}" in result.stderr


def test_choices_on_test_images_need_no_warning(tmp_path, run, noise, overfitted):
    choice = json.dumps({"from": "test", "images": 80})
    arguments = f"--model toy --dataset {noise} --output {tmp_path / 'splits'}".split()
    done = CliRunner().invoke(main, ["splits", *arguments, "--validation", choice])
    assert done.exit_code == 0, done.output
    assert "on 80 images of the test split; 120 test images are for reports, 400" in done.stderr
    result = run(overfitted, dataset=noise, splits=tmp_path / "splits")
    assert result.exit_code == 0, result.output
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["validation"] == {"from": "test", "images": 80}
    assert metrics["reported"] == {"from": "test", "images": 120}
    assert max(metrics["accuracy"].values()) < 40
    assert "warning" not in result.stderr
