"""The layers that are found in an ONNX graph."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import CONVOLUTIONS, convolution, matrix, network, random

from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_networks.graph_layers import find_sites, table_of
from lowrank.onnx_networks.model_file import input_shapes, read_model
from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network
from lowrank.zoo.registry import network_spec


def layers_of(model):
    return [site.layer for site in find_sites(model, input_shapes("network", model), "network")]


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_an_exported_network_has_the_layers_of_the_module(tmp_path, name):
    spec, module = network_spec(name), create_network(name)
    export_onnx(module, spec, tmp_path / "model.onnx")
    model = read_model(tmp_path / "model.onnx")
    shapes = input_shapes("model", model)
    sites = find_sites(model, shapes, "model")
    table, expected = table_of(sites, shapes, name), find_layers(module, spec.input_shape, name)
    assert table.input_shape == expected.input_shape
    keys = ("name", "kind", "in_channels", "out_channels", "kernel", "stride", "input_map")
    assert [[getattr(layer, key) for key in keys] for layer in table.layers] == [
        [getattr(layer, key) for key in keys] for layer in expected.layers
    ]
    assert [layer.dense_macs for layer in table.layers] == [
        layer.dense_macs for layer in expected.layers
    ]


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_the_output_map_is_that_of_the_network(form):
    weight, attributes = CONVOLUTIONS[form]
    model = convolution(weight, **attributes)
    (layer,) = layers_of(model)
    output = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
    sizes = [dimension.dim_value for dimension in output.type.tensor_type.shape.dim][2:]
    assert layer.output_map(layer.input_map) == tuple((*sizes, 1)[:2])
    assert layer.dense_macs == weight.size * np.prod(sizes)


def test_a_flattened_map_is_the_input_of_a_kernel_of_its_size():
    (layer,) = layers_of(matrix("flattened map"))
    assert (layer.kind, layer.in_channels, layer.kernel) == ("linear", 6, (3, 2))
    (tokens,) = layers_of(matrix("tokens"))
    assert (tokens.in_channels, tokens.input_map) == (7, (3, 1))


def obstacle(nodes, tensors, **options):
    (layer, *_) = layers_of(network(nodes, tensors, **options))
    return layer.not_factored


def test_layers_that_stay_have_a_reason():
    make = helper.make_node
    conv = make("Conv", ["x", "w"], ["y"], "conv")
    depthwise = make("Conv", ["x", "w"], ["y"], "conv", group=6)
    assert obstacle([conv], {"w": random(8, 6, 3, 3)}) is None
    assert obstacle([depthwise], {"w": random(6, 1, 3, 3)}).startswith("depthwise")
    transposed = make("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2])
    assert obstacle([transposed], {"w": random(6, 8, 2, 2)}) == "a transposed convolution"
    volume = {"inputs": {"x": ("batch", 6, 9, 8, 4)}}
    assert "three axes" in obstacle([conv], {"w": random(8, 6, 3, 3, 3)}, **volume)
    assert "NaN" in obstacle([conv], {"w": np.full((8, 6, 3, 3), np.nan, np.float32)})
    shared = [conv, make("Conv", ["x", "w"], ["z"], "again")]
    outputs = {"outputs": ("y", "z")}
    reason = obstacle(shared, {"w": random(8, 6, 3, 3)}, **outputs)
    assert reason == "another layer shares its weight"


def test_a_product_of_activations_is_no_layer():
    make = helper.make_node
    nodes = [
        make("Transpose", ["x"], ["t"], "transpose", perm=[0, 1, 3, 2]),
        make("MatMul", ["x", "t"], ["y"], "attention"),
    ]
    assert layers_of(network(nodes, {})) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/a/b/Conv", "Conv_7"], ["a.b", "Conv_7"]),
        (["", ""], ["c0", "c1"]),
        (["/a/Conv", "a"], ["a", "a_2"]),
        (["a b", "../etc/x"], ["a_b", "etc.x"]),
    ],
)
def test_names_are_unique_and_safe_in_paths(names, expected):
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0"], ["c0"], names[0]),
        make("Conv", ["c0", "w1"], ["c1"], names[1]),
        make("Relu", ["c1"], ["y"], "after"),
    ]
    model = network(nodes, {"w0": random(8, 6, 3, 3), "w1": random(4, 8, 3, 3)})
    assert [layer.name for layer in layers_of(model)] == expected
