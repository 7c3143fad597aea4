"""Channels that a selection leaves out are removed from the graph."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import network, random

from lowrank.onnx_networks.channel_removal import remove_unread_channels
from lowrank.onnx_networks.graph_layers import find_sites
from lowrank.onnx_networks.model_run import ModelRun

make = helper.make_node
SHAPES = {"x": (1, 6, 9, 8)}


def selection(kept, channels, *, axes=2):
    matrix = np.zeros((len(kept), channels), np.float32)
    matrix[np.arange(len(kept)), kept] = 1
    return matrix.reshape(*matrix.shape, *(1,) * axes)


# The nodes between the first convolution and the selection, and the tensors that they read.
BETWEEN = {
    "nothing": ([], {}),
    "relu": ([make("Relu", ["a"], ["b"])], {}),
    "swish": ([make("Sigmoid", ["a"], ["s"]), make("Mul", ["a", "s"], ["b"])], {}),
    "clip": ([make("Clip", ["a", "low", "high"], ["b"])], {"low": -0.5, "high": 1.0}),
    "scale": ([make("Mul", ["scale", "a"], ["b"])], {"scale": random(10, 1, 1)}),
    "slope": ([make("PRelu", ["a", "slope"], ["b"])], {"slope": random(10, 1, 1)}),
    "norm": (
        [make("BatchNormalization", ["a", "g", "o", "m", "v"], ["b"])],
        {"g": random(10), "o": random(10, seed=1), "m": random(10, seed=2), "v": random(10) ** 2},
    ),
    "depthwise": (
        [
            make("Relu", ["a"], ["r"]),
            make("Conv", ["r", "d", "e"], ["c"], "depthwise", group=10, pads=[1, 1, 1, 1]),
            make("MaxPool", ["c"], ["b"], kernel_shape=[2, 2]),
        ],
        {"d": random(10, 1, 3, 3), "e": random(10)},
    ),
}


def graph(nodes, tensors, **options):
    stored = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
    return network(nodes, stored, **options)


def with_selection(between, *, after=(), outputs=("y",), kept=(1, 4, 7)):
    nodes, tensors = BETWEEN[between]
    last = "b" if nodes else "a"
    tensors = tensors | {
        "w": random(10, 6, 3, 3),
        "bias": random(10, seed=5),
        "s1": selection(kept, 10),
        "v1": random(5, len(kept), 1, 1),
    }
    nodes = [
        make("Conv", ["x", "w", "bias"], ["a"], "first"),
        *nodes,
        make("Conv", [last, "s1"], ["selected"], "second.0"),
        make("Conv", ["selected", "v1"], ["y"], "second.1"),
        *after,
    ]
    return graph(nodes, tensors, outputs=outputs)


def outputs_of(model):
    return ModelRun(model, "network")({"x": random(3, 6, 9, 8, seed=9)})


def stored(model):
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


@pytest.mark.parametrize("between", BETWEEN)
def test_outputs_stay_and_channels_go(between):
    model = with_selection(between)
    model = onnx.shape_inference.infer_shapes(model)
    changed = copy.deepcopy(model)
    remove_unread_channels(changed)
    onnx.checker.check_model(changed, full_check=True)
    for name, expected in outputs_of(model).items():
        np.testing.assert_allclose(outputs_of(changed)[name], expected, rtol=1e-5, atol=1e-5)
    assert len(changed.graph.node) == len(model.graph.node) - 1
    assert 10 not in {size for shape in stored(changed).values() for size in shape}
    assert sum(map(np.prod, stored(changed).values())) < sum(map(np.prod, stored(model).values()))


def test_two_selections_in_a_row():
    nodes = [
        make("Conv", ["x", "w"], ["a"]),
        make("Conv", ["a", "s1"], ["b"]),
        make("Conv", ["b", "v1"], ["c"]),
        make("Relu", ["c"], ["r"]),
        make("Conv", ["r", "s2"], ["d"]),
        make("Conv", ["d", "v2"], ["y"]),
    ]
    tensors = {
        "w": random(10, 6, 3, 3),
        "s1": selection([0, 3], 10),
        "v1": random(7, 2, 1, 1),
        "s2": selection([6, 2, 1], 7),
        "v2": random(4, 3, 1, 1),
    }
    model = graph(nodes, tensors)
    changed = copy.deepcopy(model)
    remove_unread_channels(changed)
    np.testing.assert_allclose(outputs_of(changed)["y"], outputs_of(model)["y"], rtol=1e-4)
    assert sorted(stored(changed).values()) == [(2, 6, 3, 3), (3, 2, 1, 1), (4, 3, 1, 1)]


@pytest.mark.parametrize("by_output", [False, True])
def test_products(by_output):
    first, second = random(6, 10), selection([2, 5, 9], 10, axes=0)
    nodes = [
        make("GlobalAveragePool", ["x"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "w", "bias"], ["a"], transB=int(by_output)),
        make("Relu", ["a"], ["r"]),
        make("MatMul", ["r", "s"], ["b"]),
        make("MatMul", ["b", "v"], ["y"]),
    ]
    tensors = {
        "w": first.T if by_output else first,
        "bias": random(10),
        "s": second.T,
        "v": random(3, 4),
    }
    model = graph(nodes, tensors)
    changed = copy.deepcopy(model)
    remove_unread_channels(changed)
    np.testing.assert_allclose(outputs_of(changed)["y"], outputs_of(model)["y"], rtol=1e-5)
    assert len(changed.graph.node) == 5
    assert (3, 6) in stored(changed).values() or (6, 3) in stored(changed).values()


@pytest.mark.parametrize(
    ("after", "outputs"),
    [
        ([], ("y", "b")),
        ([make("ReduceMean", ["b"], ["z"], axes=[1])], ("y", "z")),
        ([make("Conv", ["b", "w2"], ["z"])], ("y", "z")),
    ],
)
def test_channels_that_are_read_elsewhere_stay(after, outputs):
    model = with_selection("relu", after=after, outputs=("y",))
    if after:
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(2, 10, 1, 1), "w2"))
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs[1:]
    )
    before = model.SerializeToString(deterministic=True)
    remove_unread_channels(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "weight",
    [
        random(3, 10, 1, 1),
        2 * selection([1, 4, 7], 10),
        selection([1, 1, 7], 10),
        selection([1, 4, 7], 10) + 1e-3,
    ],
)
def test_other_convolutions_stay(weight):
    model = with_selection("relu")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "s1")
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float32), "s1"))
    before = model.SerializeToString(deterministic=True)
    remove_unread_channels(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_shared_weight_stays_for_its_other_reader():
    nodes = [
        make("Conv", ["x", "w"], ["a"]),
        make("Conv", ["a", "s1"], ["b"]),
        make("Conv", ["b", "v1"], ["y"]),
        make("Conv", ["x", "w"], ["z"]),
    ]
    tensors = {"w": random(10, 6, 3, 3), "s1": selection([0, 3], 10), "v1": random(7, 2, 1, 1)}
    model = graph(nodes, tensors, outputs=("y", "z"))
    changed = copy.deepcopy(model)
    remove_unread_channels(changed)
    for name, expected in outputs_of(model).items():
        np.testing.assert_allclose(outputs_of(changed)[name], expected, rtol=1e-5)


def test_files_of_an_older_version():
    nodes, tensors = BETWEEN["scale"]
    tensors = tensors | {
        "w": random(10, 6, 3, 3),
        "s1": selection([1, 4], 10),
        "v1": random(5, 2, 1, 1),
    }
    nodes = [
        make("Conv", ["x", "w"], ["a"]),
        *nodes,
        make("Conv", ["b", "s1"], ["c"]),
        make("Conv", ["c", "v1"], ["y"]),
    ]
    model = graph(nodes, tensors, opset=11, ir_version=3)
    changed = copy.deepcopy(model)
    remove_unread_channels(changed)
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(outputs_of(changed)["y"], outputs_of(model)["y"], rtol=1e-4)


@pytest.mark.parametrize("between", [name for name in BETWEEN if name != "depthwise"])
def test_the_layer_table_knows_the_feeder(between):
    nodes, tensors = BETWEEN[between]
    last = "b" if nodes else "a"
    tensors = tensors | {"w": random(10, 6, 3, 3), "w2": random(5, 10, 1, 1)}
    nodes = [
        make("Conv", ["x", "w"], ["a"], "first"),
        *nodes,
        make("Conv", [last, "w2"], ["y"], "second"),
    ]
    sites = find_sites(graph(nodes, tensors), SHAPES, "network")
    assert [site.layer.fed_by for site in sites] == [None, "first"]
