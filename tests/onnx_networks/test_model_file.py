"""ONNX files that cannot be used are refused, with what to do."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import CONVOLUTIONS, convolution, network, random

from lowrank.errors import UserError
from lowrank.onnx_networks import model_file
from lowrank.onnx_networks.model_file import input_shapes, read_model, write_model
from lowrank.onnx_networks.model_run import ModelRun


@pytest.fixture
def model():
    weight, attributes = CONVOLUTIONS["plain"]
    return convolution(weight, **attributes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def refused(path):
    with pytest.raises(UserError) as error:
        read_model(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def test_a_network_is_read_and_written_unchanged(path, model):
    write_model(path, model)
    assert read_model(path) == model


def test_files_that_are_no_networks(path, model):
    assert "no such file" in refused(path)
    content = model.SerializeToString()
    for wrong in (b"", b"\x89PNG\r\n", b"a text\n", content[: len(content) // 2]):
        path.write_bytes(wrong)
        assert "not an ONNX file" in refused(path)


def test_an_operator_set_that_is_too_new_or_too_old(path, model):
    newest = onnx.defs.onnx_opset_version()
    for version, advice in ((newest + 1, "Install a newer onnx"), (7, "convert_version")):
        model.opset_import[0].version = version
        path.write_bytes(model.SerializeToString())
        text = refused(path)
        assert f"version {version}" in text
        assert advice in text


def test_a_quantized_network(path):
    tensors = {"scale": np.float32(0.1).reshape(()), "zero": np.uint8(0).reshape(())}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "dequantize"),
    ]
    path.write_bytes(network(nodes, tensors).SerializeToString())
    text = refused(path)
    assert "already quantized (node 'quantize' is a QuantizeLinear)" in text
    assert "quantize the result" in text


def test_external_data(path):
    weight = random(64, 6, 3, 3)
    onnx.save_model(
        convolution(weight), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    read = read_model(path)
    assert (onnx.numpy_helper.to_array(read.graph.initializer[0]) == weight).all()
    (path.parent / "w.bin").rename(path.parent / "elsewhere.bin")
    assert "missing: w.bin" in refused(path)
    (path.parent / "w.bin").write_bytes(b"short")
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("external", [False, True])
def test_a_network_that_is_too_large(path, monkeypatch, external):
    onnx.save_model(
        convolution(random(64, 6, 3, 3)),
        path,
        save_as_external_data=external,
        location="w.bin",
        size_threshold=0,
    )
    monkeypatch.setattr(model_file, "LARGEST_BYTES", 10_000)
    assert "networks of up to 2 GiB are supported" in refused(path)


def test_an_operator_that_onnx_runtime_does_not_know():
    model = network([helper.make_node("Relu", ["x"], ["y"], "relu")], {})
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    with pytest.raises(UserError, match=r"uses the custom operators org\.example\.Mystery"):
        ModelRun(model, "network")


def test_open_sizes_must_be_given(model):
    shapes = {"x": ("batch", 6, "height", 8)}
    model = network([helper.make_node("Relu", ["x"], ["y"], "relu")], {}, inputs=shapes)
    with pytest.raises(UserError, match=r"leaves the size of input 'x' open: \[\?, 6, \?, 8\]"):
        input_shapes("network", model)
    assert input_shapes("network", model, {"x": [1, 6, 9, 8]}) == {"x": (1, 6, 9, 8)}
    with pytest.raises(UserError, match=r"has the shape \[\?, 6, \?, 8\], but \[1, 3, 9, 8\] was"):
        input_shapes("network", model, {"x": [1, 3, 9, 8]})
    with pytest.raises(UserError, match="has no input 'y'; its inputs are 'x'"):
        input_shapes("network", model, {"y": [1]})


def test_inputs_that_do_not_fit(model):
    run = ModelRun(model, "network")
    with pytest.raises(UserError, match="needs a value for the input 'x'"):
        run({"y": random(1)})
    with pytest.raises(UserError, match=r"cannot run this network on inputs 'x' of shape \[1, 5"):
        run({"x": random(1, 5, 9, 8)})


def test_an_inner_tensor_is_an_additional_output(model):
    values = ModelRun(model, "network", inner=["c"])({"x": random(2, 6, 9, 8)})
    assert list(values) == ["y", "c"]
    assert np.allclose(np.tanh(values["c"]), values["y"], atol=1e-6)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert len(model.graph.output) == 1
