"""Whether a device computes int8 models in 8 bits."""

import onnx
import pytest

from lowrank.devices import DeviceError, create_device
from lowrank.networks.int8 import Quantizer, noise_for
from lowrank.networks.plain_onnx import side_by_side
from lowrank.params import QuantizeSettings
from lowrank.plan import PlainLayer


@pytest.fixture
def model(tmp_path):
    layers = [(PlainLayer(16, 16, (3, 3), padding=(1, 1), bias=True), (8, 8)) for _ in range(2)]
    onnx.save(side_by_side(layers), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.fixture
def device():
    return create_device("local", {"threads": 1})


def test_integer_kernels_are_seen(model, device, tmp_path):
    (tmp_path / "work").mkdir()
    quantizer = Quantizer(model, [noise_for(model)], QuantizeSettings(), tmp_path / "work")
    quantizer.write(tmp_path / "int8.onnx")
    assert device.lacks_int8(tmp_path / "int8.onnx", {}) is None
    # Some nodes may have stayed in float.
    quantizer.write(tmp_path / "half.onnx", but=["layer0"])
    assert device.lacks_int8(tmp_path / "half.onnx", {}) is None


def test_a_runtime_that_computes_in_float_is_told(model, device):
    because = device.lacks_int8(model, {})
    assert "CPUExecutionProvider of ONNX Runtime" in because
    assert "has no int8 kernels" in because
    assert "Conv in float" in because


def test_a_missing_model_is_told(tmp_path, device):
    with pytest.raises(DeviceError, match=r"none\.onnx: no such model"):
        device.lacks_int8(tmp_path / "none.onnx", {})
