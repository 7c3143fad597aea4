"""Mixing of the channels between two nodes with weights."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank.onnx_files.mixed_channels import mix_channels, spreading_matrix
from lowrank.onnx_networks.model_run import ModelRun

RANDOM = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(RANDOM.standard_normal(shape).astype(np.float32), name)


def model_of(nodes, weights, shape, outputs=("y",)):
    entries = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "net", entries, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def conv(inputs, output, **attributes):
    return helper.make_node("Conv", inputs, [output], name=output, **attributes)


def changed(model, shape, samples=8):
    """Return the number of pairs, and the inner tensor `h` and the output before and after."""
    inputs = (3 + RANDOM.standard_normal((samples, *shape))).astype(np.float32)
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    pairs = mix_channels(mixed, [{"x": inputs[:4]}, {"x": inputs[4:]}], "net")
    values = []
    for network in (model, mixed):
        probe = onnx.ModelProto()
        probe.CopyFrom(network)
        if "h" not in {output.name for output in probe.graph.output}:
            probe.graph.output.append(helper.make_empty_tensor_value_info("h"))
        run = ModelRun(probe, "net")({"x": inputs})
        values.append((run["h"], run["y"]))
    return pairs, *values


def assert_same(before, after):
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


CONVOLUTIONS = {
    "1x1": (conv(["x", "a"], "h"), conv(["h", "b", "c"], "y"), (6, 4, 1, 1), (5, 6, 1, 1)),
    "padded": (
        conv(["x", "a"], "h"),
        conv(["h", "b", "c"], "y", pads=[1, 1, 1, 1]),
        (6, 4, 1, 1),
        (5, 6, 3, 3),
    ),
    "grouped": (
        conv(["x", "a"], "h", group=2),
        conv(["h", "b"], "y", group=2),
        (6, 2, 1, 1),
        (8, 3, 1, 1),
    ),
    "large window": (
        conv(["x", "a"], "h", strides=[2, 2]),
        conv(["h", "b"], "y"),
        (6, 4, 3, 3),
        (5, 6, 2, 2),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_two_convolutions_compute_the_same(name):
    first, second, shape, other = CONVOLUTIONS[name]
    tensors = [weight("a", *shape), weight("b", *other)]
    if "c" in second.input:
        tensors.append(weight("c", other[0]))
    pairs, before, after = changed(model_of([first, second], tensors, (4, 8, 8)), (4, 8, 8))
    assert pairs == 1
    assert_same(before[1], after[1])
    assert np.abs(after[0] - before[0]).max() > 0.1
    # Zeros of a padding have no mean, so there the means must stay.
    assert (np.abs(after[0].mean((0, 2, 3))).max() < 1e-4) == (name != "padded")


@pytest.mark.parametrize(("transposed", "bias"), [(0, ()), (1, ()), (0, (5,)), (1, (1,))])
def test_two_products_compute_the_same(transposed, bias):
    first, second = (weight("a", 4, 6), weight("b", 6, 5)) if not transposed else (
        weight("a", 6, 4), weight("b", 5, 6))  # fmt: skip
    tensors = [first, second, *([weight("c", *bias)] if bias else [])]
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], name="h", transB=transposed),
        helper.make_node(
            "Gemm", ["h", "b", *("c" for _ in bias)], ["y"], name="y", transB=transposed
        ),
    ]
    pairs, before, after = changed(model_of(nodes, tensors, (4,)), (4,))
    assert pairs == 1
    assert_same(before[1], after[1])
    assert np.abs(after[0].mean(0)).max() < 1e-4


def test_two_products_of_tokens_compute_the_same():
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="h"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="y"),
    ]
    model = model_of(nodes, [weight("a", 4, 6), weight("b", 6, 5)], (7, 4))
    pairs, before, after = changed(model, (7, 4))
    assert pairs == 1
    assert_same(before[1], after[1])


def test_channels_get_similar_ranges():
    importance = np.array([100, 10, 1, 0.1, 0.01, 0.001], np.float32)
    first = (
        RANDOM.standard_normal((6, 4, 1, 1)).astype(np.float32) * importance[:, None, None, None]
    )
    tensors = [numpy_helper.from_array(first, "a"), weight("b", 5, 6, 1, 1)]
    model = model_of([conv(["x", "a"], "h"), conv(["h", "b"], "y")], tensors, (4, 8, 8))
    _, (before, _), (after, _) = changed(model, (4, 8, 8))
    ranges = [np.abs(h).max((0, 2, 3)) for h in (before, after)]
    assert ranges[0].max() / ranges[0].min() > 1e4
    assert ranges[1].max() / ranges[1].min() < 10


def relu_between():
    nodes = [
        conv(["x", "a"], "g"),
        helper.make_node("Relu", ["g"], ["h"], name="h"),
        conv(["h", "b"], "y"),
    ]
    return model_of(nodes, [weight("a", 6, 4, 1, 1), weight("b", 5, 6, 1, 1)], (4, 8, 8))


def two_readers():
    nodes = [
        conv(["x", "a"], "h"),
        conv(["h", "b"], "g"),
        conv(["h", "c"], "k"),
        helper.make_node("Add", ["g", "k"], ["y"], name="y"),
    ]
    tensors = [weight("a", 6, 4, 1, 1), weight("b", 5, 6, 1, 1), weight("c", 5, 6, 1, 1)]
    return model_of(nodes, tensors, (4, 8, 8))


def an_output():
    nodes = [conv(["x", "a"], "h"), conv(["h", "b"], "y")]
    tensors = [weight("a", 6, 4, 1, 1), weight("b", 5, 6, 1, 1)]
    return model_of(nodes, tensors, (4, 8, 8), outputs=("y", "h"))


def a_shared_weight():
    nodes = [conv(["x", "a"], "h"), conv(["h", "a"], "y")]
    return model_of(nodes, [weight("a", 4, 4, 1, 1)], (4, 8, 8))


def depthwise():
    nodes = [conv(["x", "a"], "h", group=4), conv(["h", "b"], "y")]
    return model_of(nodes, [weight("a", 4, 1, 3, 3), weight("b", 5, 4, 1, 1)], (4, 8, 8))


@pytest.mark.parametrize(
    "build", [relu_between, two_readers, an_output, a_shared_weight, depthwise]
)
def test_other_nodes_are_not_changed(build):
    model = build()
    content = model.SerializeToString()
    assert mix_channels(model, [], "net") == 0
    assert model.SerializeToString() == content


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_spreading_matrix_is_orthogonal_with_small_entries(size):
    matrix = spreading_matrix(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert np.abs(matrix).max() <= np.sqrt(2 / size) + 1e-12
