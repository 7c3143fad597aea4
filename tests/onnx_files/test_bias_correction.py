"""Correction of the biases of int8 networks."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from lowrank.onnx_files.bias_correction import BiasCorrection
from lowrank.onnx_networks.model_run import ModelRun

RANDOM = np.random.default_rng(0)
IMAGES = (2 + RANDOM.random((64, 4, 6, 6))).astype(np.float32)
VECTORS = (2 + RANDOM.random((64, 8))).astype(np.float32)
# Rounding errors of three bits are large enough to see.
STEPS = 3


class Samples(CalibrationDataReader):
    def __init__(self, inputs):
        self.batches = iter([{"x": inputs}])

    def get_next(self):
        return next(self.batches, None)


def weight(*shape):
    """Return a weight whose rounding errors have one sign in each output channel."""
    values = 0.3 * RANDOM.random(shape)
    values.reshape(len(values), -1)[:, 0] = STEPS
    return values.astype(np.float32)


def model_of(node, inputs, **constants):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *inputs.shape[1:]])
    result = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "net", [entry], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def rounded(model, inputs, folder, corrected):
    """Return the outputs of the int8 network whose weights have a few values only."""
    correction = BiasCorrection.prepared(model, [{"x": inputs}], "net")
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Samples(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantized = onnx.load(folder / "int8.onnx")
    for tensor in quantized.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            integers = numpy_helper.to_array(tensor).astype(np.float64)
            coarse = np.rint(integers * STEPS / 127) * 127 / STEPS
            tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.int8), tensor.name))
    if corrected:
        assert correction.apply(quantized) == 1
    return ModelRun(quantized, "net")({"x": inputs})["y"]


CASES = {
    "convolution": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="n"),
        IMAGES,
        {"w": weight(5, 4, 3, 3), "b": np.ones(5, np.float32)},
    ),
    "without a bias": (
        helper.make_node("Conv", ["x", "w"], ["y"], name="n"),
        IMAGES,
        {"w": weight(5, 4, 1, 1)},
    ),
    "grouped": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="n", group=2),
        IMAGES,
        {"w": weight(6, 2, 1, 1), "b": np.ones(6, np.float32)},
    ),
    "depthwise": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="n", group=4),
        IMAGES,
        {"w": weight(4, 1, 3, 3), "b": np.ones(4, np.float32)},
    ),
    "Gemm": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n", transB=1),
        VECTORS,
        {"w": weight(5, 8), "b": np.ones(5, np.float32)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_each_channel_stays(case, tmp_path):
    node, inputs, constants = CASES[case]
    model = model_of(node, inputs, **constants)
    expected = ModelRun(model, "net")({"x": inputs})["y"]
    axes = (0, *range(2, expected.ndim))
    errors = {}
    for corrected in (False, True):
        outputs = rounded(model_of(node, inputs, **constants), inputs, tmp_path, corrected)
        errors[corrected] = np.abs((outputs - expected).mean(axes)).max()
    assert errors[False] > 0.3
    assert errors[True] < errors[False] / 10


def test_a_bias_of_two_nodes_stays_as_it_is():
    names = {"first": ("x", "h"), "second": ("h", "y")}
    nodes = [
        helper.make_node("Conv", [read, "w", "b"], [written], name=name)
        for name, (read, written) in names.items()
    ]
    tensors = [
        numpy_helper.from_array(weight(4, 4, 1, 1), "w"),
        numpy_helper.from_array(np.ones(4, np.float32), "b"),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])
    graph = helper.make_graph(
        nodes, "net", [entry], [helper.make_empty_tensor_value_info("y")], tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    correction = BiasCorrection.prepared(model, [{"x": IMAGES}], "net")
    integers = onnx.ModelProto()
    integers.CopyFrom(model)
    del integers.graph.initializer[:]
    integers.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones((4, 4, 1, 1), np.int8), "wq"),
            numpy_helper.from_array(np.ones(4, np.int32), "bq"),
            numpy_helper.from_array(np.ones(4, np.float32), "s"),
        ]
    )
    for name in ("w", "b"):
        node = helper.make_node("DequantizeLinear", [f"{name}q", "s"], [name], axis=0)
        integers.graph.node.insert(0, node)
    assert correction.apply(integers) == 0


def test_a_network_in_float_stays_as_it_is():
    node, inputs, constants = CASES["convolution"]
    model = model_of(node, inputs, **constants)
    correction = BiasCorrection.prepared(model, [{"x": inputs}], "net")
    before = model.SerializeToString()
    assert correction.apply(model) == 0
    assert model.SerializeToString() == before
