"""The check that a device computes int8 models with integer kernels."""

import onnx
import pytest
from onnx import TensorProto, helper

from lowrank.config.device_kinds import create_device
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError
from lowrank.onnx_files.int8 import Quantizer, noise_for
from lowrank.onnx_files.single_layers import side_by_side


@pytest.fixture
def model(tmp_path):
    layers = [(PlainLayer(16, 16, (3, 3), padding=(1, 1), bias=True), (8, 8)) for _ in range(2)]
    onnx.save(side_by_side(layers), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.fixture
def device():
    return create_device("local", {"threads": 1})


def test_integer_kernels_are_detected(model, device, tmp_path):
    (tmp_path / "work").mkdir()
    quantizer = Quantizer(model, [noise_for(model)], QuantizeSettings(), tmp_path / "work")
    quantizer.write(tmp_path / "int8.onnx")
    assert device.lacks_int8(tmp_path / "int8.onnx", {}) is None
    # Models in which some nodes, or all of them, stayed in float.
    quantizer.write(tmp_path / "half.onnx", but=["layer0"])
    assert device.lacks_int8(tmp_path / "half.onnx", {}) is None
    quantizer.write(tmp_path / "all.onnx", but=["layer0", "layer1"])
    assert device.lacks_int8(tmp_path / "all.onnx", {}) is None


def test_a_runtime_that_computes_in_float_is_detected(device, tmp_path):
    """A runtime without int8 kernels runs a quantized layer in float, between two conversions."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, 1, 1, 1], [2.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["again"]),
        helper.make_node("Conv", ["again", "weight"], ["output"]),
    ]
    maps = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4])
        for name in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "model", maps[:1], maps[1:], [scale, zero, weight])
    model = tmp_path / "model.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), model)
    reason = device.lacks_int8(model, {})
    assert "CPUExecutionProvider of ONNX Runtime" in reason
    assert "has no int8 kernels" in reason
    assert "Conv in float" in reason


def test_a_missing_model_is_an_error(tmp_path, device):
    with pytest.raises(DeviceError, match=r"none\.onnx: no such model"):
        device.lacks_int8(tmp_path / "none.onnx", {})
