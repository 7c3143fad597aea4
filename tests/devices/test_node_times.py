"""How long each node of a model takes."""

import numpy as np
import onnx
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError, create_device
from lowrank.devices.node_times import without_profiling
from lowrank.onnx_files.single_layers import side_by_side

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
def test_each_convolution_is_found_by_its_name(tmp_path, device, batch_size):
    model = tmp_path / "layers.onnx"
    onnx.save(side_by_side(LAYERS, batch_size), model)
    onnx.checker.check_model(model, full_check=True)
    found = device.node_times(model, QUICK | {"batch_size": batch_size})
    layers = {name: node for name, node in found.items() if node.operator.endswith("Conv")}
    assert set(layers) == {f"layer{index}" for index in range(4)}
    assert all(node.milliseconds > 0 for node in found.values())


def test_what_the_profile_adds_is_taken_from_every_node_alike():
    found = without_profiling(np.array([5.0, 9.0, 3.0, 3.0]), 12.0)
    assert found == pytest.approx([3, 7, 1, 1])
    # A node takes some time, whatever the profile adds on the average.
    assert without_profiling(np.array([2.0, 100.0]), 60.0).min() > 0


def test_nothing_is_left_in_the_folder(tmp_path, device, monkeypatch):
    model = tmp_path / "layers.onnx"
    onnx.save(side_by_side(LAYERS[:1]), model)
    monkeypatch.chdir(tmp_path)
    device.node_times(model, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["layers.onnx"]


def test_a_missing_model_is_told(tmp_path, device):
    with pytest.raises(DeviceError, match=r"none\.onnx: no such model"):
        device.node_times(tmp_path / "none.onnx", QUICK)
