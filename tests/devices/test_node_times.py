"""The times of the nodes of a model."""

from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lowrank.config.device_kinds import create_device
from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError
from lowrank.devices.node_times import without_profiling
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.node_layers import layers_of_nodes
from lowrank.onnx_files.single_layers import side_by_side
from lowrank.zoo.registry import NetworkSpec

QUICK = {"warmup_seconds": 0, "repeats": 20, "seconds": 0}
LAYERS = [
    (PlainLayer(16, 16, (3, 3), padding=(1, 1), bias=True), (16, 16)),
    (PlainLayer(16, 64, (3, 3), padding=(1, 1), bias=True), (16, 16)),
    (PlainLayer(16, 7, bias=True), (16, 16)),
    (PlainLayer(32, 32, (3, 1), stride=(2, 1), groups=32, bias=True), (8, 8)),
]


@pytest.fixture
def device():
    return create_device("local", {"threads": 1})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_convolution_is_listed_under_its_name(tmp_path, device, batch_size):
    model = tmp_path / "layers.onnx"
    onnx.save(side_by_side(LAYERS, batch_size), model)
    onnx.checker.check_model(model, full_check=True)
    times = device.node_times(model, QUICK | {"batch_size": batch_size})
    layers = {name: node for name, node in times.items() if node.operator.endswith("Conv")}
    assert set(layers) == {f"layer{index}" for index in range(4)}
    assert all(node.milliseconds > 0 for node in times.values())


def test_a_linear_layer_that_is_merged_with_its_activation_keeps_its_name(tmp_path, device):
    torch.manual_seed(0)
    layers = {"flatten": nn.Flatten(), "fc": nn.Linear(48, 32), "relu": nn.ReLU()}
    network = nn.Sequential(OrderedDict(layers)).eval()
    export_onnx(network, NetworkSpec("small", (3, 4, 4), 32), tmp_path / "model.onnx")
    times = device.node_times(tmp_path / "model.onnx", QUICK)
    assert times["fc"].operator == "FusedGemm"
    assert layers_of_nodes(tmp_path / "model.onnx")["fc"] == "fc"


def test_the_overhead_of_the_profile_is_subtracted_equally_from_every_node():
    corrected = without_profiling(np.array([5.0, 9.0, 3.0, 3.0]), 12.0)
    assert corrected == pytest.approx([3, 7, 1, 1])
    # The corrected time stays positive, even if the mean overhead exceeds the time of a node.
    assert without_profiling(np.array([2.0, 100.0]), 60.0).min() > 0


def test_no_profile_is_left_in_the_folder(tmp_path, device, monkeypatch):
    model = tmp_path / "layers.onnx"
    onnx.save(side_by_side(LAYERS[:1]), model)
    monkeypatch.chdir(tmp_path)
    device.node_times(model, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["layers.onnx"]


def test_a_missing_model_is_an_error(tmp_path, device):
    with pytest.raises(DeviceError, match=r"none\.onnx: no such model"):
        device.node_times(tmp_path / "none.onnx", QUICK)
