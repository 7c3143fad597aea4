"""ONNX files as networks: specification, layout, and the state between steps."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_graphs import network, random, reader_of_words

from lowrank.config.network_source import NetworkSource
from lowrank.core.stored import read_header
from lowrank.errors import UserError
from lowrank.onnx_networks.model_run import ModelRun
from lowrank.surgery.finding import find_layers, layer_table
from lowrank.surgery.states import State, read_state, write_state
from lowrank.zoo.creation import create
from lowrank.zoo.registry import InputForm, NetworkSpec


def write(path, *, layout: str = "nchw", sizes=(9, 8)):
    """Write a classifier of images with five classes."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], "/stem/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v"], ["y"], "/head/Gemm"),
    ]
    shape = ("batch", 3, *sizes)
    if layout == "nhwc":
        shape = ("batch", *sizes, 3)
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["images"], perm=[0, 3, 1, 2]))
    name = "x" if layout == "nhwc" else "images"
    model = network(nodes, {"w": random(16, 3, 3, 3), "v": random(16, 5)}, inputs={name: shape})
    onnx.save(model, path)
    return str(path)


def test_a_network_has_the_weights_and_the_input_of_its_file(tmp_path):
    path = write(tmp_path / "net.onnx")
    spec, built = create(NetworkSource(onnx=path, mean=(0.5, 0.4, 0.3)))
    assert (spec.name, spec.input_shape, spec.num_classes) == (path, (3, 9, 8), 5)
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (1.0, 1.0, 1.0))
    table = find_layers(built, spec.input_shape, "net")
    assert [layer.name for layer in table.layers] == ["stem", "head"]
    # The graph of a workflow needs the table alone.
    assert layer_table(NetworkSource(onnx=path), "net") == table
    images = torch.from_numpy(random(2, 3, 9, 8, seed=3))
    (expected,) = ModelRun(onnx.load(path), path)({"images": images.numpy()}).values()
    np.testing.assert_allclose(built(images).detach(), expected, rtol=1e-4, atol=1e-5)


def test_images_of_a_file_in_another_layout(tmp_path):
    path = write(tmp_path / "net.onnx", layout="nhwc")
    spec, built = create(NetworkSource(onnx=path))
    assert (spec.input_shape, spec.layout) == ((3, 9, 8), "nhwc")
    images = torch.from_numpy(random(2, 3, 9, 8, seed=3))
    feed = {"x": images.permute(0, 2, 3, 1).numpy()}
    (expected,) = ModelRun(onnx.load(path), path)(feed).values()
    np.testing.assert_allclose(built(images).detach(), expected, rtol=1e-4, atol=1e-5)
    # What the sizes do not tell can be stated.
    assert create(NetworkSource(onnx=path, layout="nhwc"))[0].input_shape == (3, 9, 8)


def test_open_sizes_are_given(tmp_path):
    path = write(tmp_path / "net.onnx", sizes=("height", "width"))
    with pytest.raises(
        UserError, match=r"leaves the size of input 'images' open.*inputs: \{images"
    ):
        create(NetworkSource(onnx=path))
    spec, _ = create(NetworkSource(onnx=path, inputs={"images": (1, 3, 12, 20)}))
    assert spec.input_shape == (3, 12, 20)


def test_a_state_belongs_to_one_version_of_the_file(tmp_path):
    path = write(tmp_path / "net.onnx")
    source = NetworkSource(onnx=path)
    spec, built = create(source)
    with torch.no_grad():
        built.head.weight.mul_(2.0)
    write_state(tmp_path / "state.safetensors", State(spec, built, {}, source))
    assert set(read_header(tmp_path / "state.safetensors")) == {
        *("network", "spec", "factored", "file")
    }
    read = read_state(tmp_path / "state.safetensors", source).network
    assert torch.equal(read.head.weight, built.head.weight)
    model = onnx.load(path)
    model.doc_string = "another version"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"was made from another version of .*net\.onnx. Delete"):
        read_state(tmp_path / "state.safetensors", source)


@pytest.mark.parametrize("shape", [(7,), (4, 7), (3, 2, 4, 7)])
def test_an_input_of_any_shape_is_taken_as_it_is(tmp_path, shape):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
    model = network(nodes, {"w": random(7, 5)}, inputs={"x": ("batch", *shape)})
    path = str(tmp_path / "net.onnx")
    onnx.save(model, path)
    spec, built = create(NetworkSource(onnx=path))
    assert spec.forms == (InputForm("x", shape),)
    assert (spec.input_shape, spec.mean) == (shape, ())
    assert NetworkSpec.from_json(spec.to_json()) == spec
    inputs = random(2, *shape, seed=3)
    expected = inputs @ random(7, 5)
    np.testing.assert_allclose(
        built(torch.from_numpy(inputs)).detach(), expected, rtol=1e-4, atol=1e-5
    )
    assert layer_table(NetworkSource(onnx=path), "net").input_shape == shape


def test_several_inputs(tmp_path):
    path = str(tmp_path / "reader.onnx")
    onnx.save(reader_of_words(), path)
    source = NetworkSource(onnx=path)
    spec, built = create(source)
    assert spec.forms == (InputForm("words", (6,), "int64"), InputForm("features", (5,)))
    assert (spec.input_shape, spec.num_classes) == ((6,), 4)
    assert [layer.name for layer in find_layers(built, (6,), "r").layers] == [
        *("words", "features", "head")
    ]
    write_state(tmp_path / "state.safetensors", State(spec, built, {}, source))
    assert read_state(tmp_path / "state.safetensors", source).spec == spec
    header = read_header(tmp_path / "state.safetensors")
    assert header["spec"]["inputs"][0] == {"name": "words", "shape": [6], "type": "int64"}


def unusable(kind):
    """Return a network with an input that is no batch of numbers."""
    if kind == "types":
        nodes = [
            helper.make_node("Cast", ["n"], ["c"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["c", "x"], ["y"]),
        ]
        types = {"n": onnx.TensorProto.UINT32}
        return network(nodes, {}, inputs={"n": ("b", 4), "x": ("b", 4)}, types=types)
    second = {"axes": (), "batches": (2, 4)}[kind]
    nodes = [helper.make_node("ReduceSum", ["z"], ["s"], keepdims=0),
             helper.make_node("Add", ["x", "s"], ["y"])]  # fmt: skip
    return network(nodes, {}, inputs={"x": (1, 4), "z": second})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("types", r"its input 'n' has the type uint32; expected one of float32, int8"),
        ("axes", r"its input 'z' has no axes; expected samples along the first axis"),
        ("batches", r"different numbers of samples.*'x' \[1, 4\], 'z' \[2, 4\]"),
    ],
)
def test_inputs_that_are_no_batches_are_refused(tmp_path, kind, message):
    onnx.save(unusable(kind), tmp_path / "net.onnx")
    with pytest.raises(UserError, match=rf"net\.onnx: .*{message}"):
        create(NetworkSource(onnx=str(tmp_path / "net.onnx")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "nhwc"}, r"`layout` is for images, .* 'words' \(N, 6\) of int64"),
        ({"mean": (0.5,)}, r"`mean` is for images, but this network takes 'words'"),
        ({"resize": 9}, r"`resize` is for images"),
        ({"inputs": {"words": (1, 6), "wrods": (1, 6)}}, "has no input 'wrods'; its inputs are"),
        ({"inputs": {"words": (1, 7)}}, r"'words' of .* has the shape \[\?, 6\], but \[1, 7\]"),
    ],
)
def test_settings_that_do_not_fit_the_inputs(tmp_path, settings, message):
    onnx.save(reader_of_words(), tmp_path / "net.onnx")
    with pytest.raises(UserError, match=message):
        create(NetworkSource(onnx=str(tmp_path / "net.onnx"), **settings))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"onnx": "a.onnx", "factory": "a:b", "input_shape": [3, 8, 8]}, "give one of"),
        ({"onnx": "a.onnx", "arguments": {"x": 1}}, "not for an ONNX file"),
        ({"network": "vgg16", "inputs": {"x": [1, 3, 8, 8]}}, "`inputs` is only for"),
        ({"onnx": "a.pth"}, "onnx"),
        ({"onnx": "missing.onnx"}, "missing.onnx: no such file"),
    ],
)
def test_mistakes_are_reported(document, message):
    with pytest.raises(UserError, match=message):
        create(NetworkSource.parse(document))
