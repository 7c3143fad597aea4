from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from torch import nn

from lowrank.errors import UserError
from lowrank.zoo.caffe import caffe_weights, read_caffemodel

_Field = descriptor_pb2.FieldDescriptorProto
ONE, MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED

# Fields of caffe.proto (name, number, label, type), including some that the reader must skip.
SCHEMA = {
    "NetParameter": [
        ("name", 1, ONE, "string"),
        ("layers", 2, MANY, "V1LayerParameter"),
        ("input_dim", 4, MANY, "int64"),
        ("layer", 100, MANY, "LayerParameter"),
    ],
    "V1LayerParameter": [
        ("bottom", 2, MANY, "string"),
        ("name", 4, ONE, "string"),
        ("type", 5, ONE, "int32"),
        ("blobs", 6, MANY, "BlobProto"),
        ("blobs_lr", 7, MANY, "float"),
    ],
    "LayerParameter": [
        ("name", 1, ONE, "string"),
        ("type", 2, ONE, "string"),
        ("bottom", 3, MANY, "string"),
        ("blobs", 7, MANY, "BlobProto"),
    ],
    "BlobProto": [
        ("num", 1, ONE, "int32"),
        ("channels", 2, ONE, "int32"),
        ("height", 3, ONE, "int32"),
        ("width", 4, ONE, "int32"),
        ("data", 5, MANY, "float"),
        ("diff", 6, MANY, "float"),
        ("shape", 7, ONE, "BlobShape"),
        ("double_data", 8, MANY, "double"),
    ],
    "BlobShape": [("dim", 1, MANY, "int64")],
}


def net_parameter() -> Message:
    """Create an empty NetParameter whose numbers are declared as numbers, not bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="written.proto", package="written")
    for message, fields in SCHEMA.items():
        declared = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            field = declared.field.add(name=name, number=number, label=label)
            if kind in SCHEMA:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".written.{kind}"
            else:
                field.type = getattr(_Field, f"TYPE_{kind.upper()}")
            field.options.packed = label == MANY and kind in ("float", "double", "int64")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("written.NetParameter"))()


def write(path: Path, layers: dict[str, list], *, v1: bool = False, double: bool = False) -> Path:
    """Write a file like Caffe does; with `v1`, in the format before 2015 (4-dimensional blobs)."""
    model = net_parameter()
    model.name = "small"
    for name, arrays in {"data": [], **layers}.items():
        layer = (model.layers if v1 else model.layer).add(name=name, bottom=["data"])
        layer.type = 4 if v1 else "Convolution"
        for array in arrays:
            array = np.asarray(array)
            blob = layer.blobs.add()
            if v1:
                shape = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = shape
            else:
                blob.shape.dim.extend(array.shape)
            (blob.double_data if double else blob.data).extend(array.ravel())
            blob.diff.extend([7.0] * array.size)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


class Small(nn.Sequential):
    """A convolution with two groups, a nested convolution to one channel, and a linear layer.

    The layers of `head` are only used in training.
    """

    training_only = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(4, 6, 3, groups=2))
        self.add_module("block", nn.ModuleDict({"1x1": nn.Conv2d(6, 1, 1, bias=False)}))
        self.add_module("fc8", nn.Linear(9, 5))


def small_layers() -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(0)
    shapes = {"conv1": [(6, 2, 3, 3), (6,)], "block/1x1": [(1, 6, 1, 1)], "fc8": [(5, 9), (5,)]}
    return {
        name: [generator.standard_normal(shape).astype(np.float32) for shape in blob_shapes]
        for name, blob_shapes in shapes.items()
    }


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_both_file_formats_load_into_a_network(tmp_path: Path, v1: bool, double: bool):
    layers = small_layers()
    path = write(tmp_path / "a.caffemodel", layers, v1=v1, double=double)
    network = Small()
    weights = caffe_weights(path, network)
    network.load_state_dict(weights)
    expected = {
        "conv1.weight": layers["conv1"][0],
        "conv1.bias": layers["conv1"][1],
        "block.1x1.weight": layers["block/1x1"][0],
        "fc8.weight": layers["fc8"][0],
        "fc8.bias": layers["fc8"][1],
    }
    assert weights.keys() == expected.keys()
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


def test_layers_keep_the_order_and_shapes_of_the_file(tmp_path: Path):
    layers = small_layers()
    read = read_caffemodel(write(tmp_path / "a.caffemodel", layers))
    assert list(read) == ["conv1", "block/1x1", "fc8"]  # `data` has no blobs
    for name, blobs in read.items():
        for blob, expected in zip(blobs, layers[name], strict=True):
            assert blob.dtype == np.float32
            np.testing.assert_array_equal(blob, expected)
    legacy = read_caffemodel(write(tmp_path / "b.caffemodel", layers, v1=True))
    assert [blob.shape for blob in legacy["fc8"]] == [(1, 1, 5, 9), (1, 1, 1, 5)]


# PyTorch warns about tensors whose memory is read-only.
@pytest.mark.filterwarnings("error")
def test_tensors_can_be_trained(tmp_path: Path):
    weights = caffe_weights(write(tmp_path / "a.caffemodel", small_layers()), Small())
    weights["fc8.bias"] += 1
    assert torch.isfinite(weights["fc8.bias"]).all()


def test_training_only_layers_are_skipped(tmp_path: Path):
    layers = small_layers() | {"head/conv": [np.ones((2, 4, 1, 1))], "head/fc": [np.ones((3, 2))]}
    path = write(tmp_path / "a.caffemodel", layers)
    assert len(caffe_weights(path, Small())) == 5
    with pytest.raises(UserError, match=r"a layer 'head/conv' that Plain does not have \(2 such"):
        caffe_weights(path, type("Plain", (Small,), {"training_only": ()})())


@pytest.mark.parametrize(
    ("layer", "blobs", "message"),
    [
        # Weights of another network with another number of channels; a transposed layer.
        (
            "conv1",
            [(6, 4, 3, 3), (6,)],
            r"layer 'conv1' has blobs of shape 6 x 4 x 3 x 3 and 6, expected 6 x 2 x 3 x 3 and 6\.",
        ),
        ("fc8", [(9, 5), (5,)], r"'fc8' has blobs of shape 9 x 5 and 5, expected 5 x 9 and 5\."),
        ("fc8", [(5, 9)], r"layer 'fc8' has blobs of shape 5 x 9, expected 5 x 9 and 5\."),
        ("block/1x1", [(1, 6, 1, 1), (1,)], r"'block/1x1' has blobs of shape 1 x 6 x 1 x 1 and 1,"),
        ("fc9", [(5, 9), (5,)], r"has a layer 'fc9' that Small does not have \(1 such"),
        (
            "fc8",
            None,
            r"has no layer 'fc8' of Small \(1 of 3 layers are missing; the file has 'conv1', "
            r"'block/1x1'\)",
        ),
    ],
)
def test_weights_of_another_network_are_rejected(tmp_path: Path, layer, blobs, message):
    layers = small_layers()
    layers.pop(layer, None)
    if blobs:
        layers[layer] = [np.zeros(shape) for shape in blobs]
    path = write(tmp_path / "other.caffemodel", layers)
    with pytest.raises(UserError, match=r"other\.caffemodel: .*" + message):
        caffe_weights(path, Small())


@pytest.mark.parametrize("v1", [False, True])
def test_every_truncated_file_is_rejected(tmp_path: Path, v1: bool):
    content = write(tmp_path / "complete.caffemodel", small_layers(), v1=v1).read_bytes()
    truncated = tmp_path / "truncated.caffemodel"
    for length in range(len(content)):
        truncated.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"truncated\.caffemodel: "):
            caffe_weights(truncated, Small())


@pytest.mark.parametrize(
    "content",
    [
        b'name: "AlexNet"\nlayer { name: "conv1" type: "Convolution" }\n',
        b"PK\x03\x04\x00\x00\x08\x08" + bytes(100),
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        bytes(range(256)),
        b"",
        # A message with only unknown fields; a layer whose name is not valid text.
        b"\x98\x06\x07",
        b"\xa2\x06\x04\x0a\x02\xff\xfe",
    ],
)
def test_files_of_another_format_are_rejected(tmp_path: Path, content: bytes):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.caffemodel: .*\({len(content)} bytes\)"):
        read_caffemodel(path)


def test_blob_with_inconsistent_shape_and_values_is_rejected(tmp_path: Path):
    model = net_parameter()
    blob = model.layer.add(name="conv1").blobs.add()
    blob.shape.dim.extend([2, 3])
    blob.data.extend([0.0] * 5)
    path = tmp_path / "a.caffemodel"
    path.write_bytes(model.SerializeToString())
    message = r"layer 'conv1' holds 5 values, but its shape \(2, 3\) needs 6"
    with pytest.raises(UserError, match=message):
        read_caffemodel(path)

    blob.shape.dim[:] = [-1, -5]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"shape \(-1, -5\)"):
        read_caffemodel(path)


def test_data_truncated_within_a_number_is_rejected(tmp_path: Path):
    # Three bytes of data, although a number has four: layer 100 { name: "a", blobs { data } }.
    blob = b"\x2a\x03abc"
    layer = b"\x0a\x01a" + b"\x3a" + bytes([len(blob)]) + blob
    path = tmp_path / "a.caffemodel"
    path.write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    with pytest.raises(UserError, match="not a complete"):
        read_caffemodel(path)
