"""Nodes between layers that stay in float in an int8 network."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank.config.quantize import QuantizeSettings
from lowrank.onnx_files.float_nodes import float_nodes
from lowrank.onnx_files.int8 import Quantizer

RANDOM = np.random.default_rng(0)


def hard_swish(source, target):
    """Return hard swish as PaddlePaddle writes it: x clip(x + 3, 0, 6) / 6."""
    steps = [
        ("Add", [source, "three"], "sum"),
        ("Clip", ["sum", "zero", "six"], "clipped"),
        ("Mul", [source, "clipped"], "product"),
        ("Div", ["product", "six"], target),
    ]
    return [
        helper.make_node(operator, inputs, [output], name=output)
        for operator, inputs, output in steps
    ]


@pytest.fixture
def model():
    """Return convolutions with a Clip, hard swish, and a sum of two maps behind them."""
    constants = {"zero": 0.0, "three": 3.0, "six": 6.0}
    scalars = [numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()]
    weights = [
        numpy_helper.from_array(
            (RANDOM.standard_normal((8, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(np.float32),
            name,
        )
        for name, inputs in (("a", 3), ("b", 8), ("c", 8))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="conv1"),
        helper.make_node("Clip", ["p", "zero", "six"], ["q"], name="relu6"),
        helper.make_node("Conv", ["q", "b"], ["r"], name="conv2"),
        *hard_swish("r", "s"),
        helper.make_node("Conv", ["s", "c"], ["t"], name="conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [entry], [result], [*scalars, *weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_activation_functions_of_several_nodes_stay_in_float(model):
    weighted = frozenset({"conv1", "conv2", "conv3"})
    assert list(float_nodes(model.graph, weighted)) == ["sum", "clipped", "product"]


def test_their_results_are_not_rounded(model, tmp_path):
    onnx.save(model, tmp_path / "net.onnx")
    batches = [{"x": RANDOM.standard_normal((8, 3, 12, 12)).astype(np.float32)}]
    (tmp_path / "work").mkdir()
    path = tmp_path / "int8.onnx"
    Quantizer(tmp_path / "net.onnx", batches, QuantizeSettings(), tmp_path / "work").write(path)
    graph = onnx.load(path).graph
    rounded = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    # `q` is the output of the first convolution, with ReLU6 merged into it.
    assert rounded == ["x", "q", "r", "s", "t", "y_QuantizeLinear_Input"]
    # The sum had no name.
    assert all(node.name for node in graph.node)
