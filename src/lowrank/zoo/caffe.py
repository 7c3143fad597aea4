"""Read trained weights from Caffe's `.caffemodel` files."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.errors import UserError


def caffe_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a `.caffemodel` under the names that the network uses.

    Slashes in Caffe's layer names become dots: the weight of `inception_3a/1x1` is
    `inception_3a.1x1.weight`. Layers that are only used in training are skipped. The network lists
    them in an attribute `training_only`, by the part of the name before the slash.

    Raises
    ------
    UserError
        In the same cases as `read_caffemodel`; also if a layer of the network is missing from the
        file, the file holds a layer that the network does not have, or a layer has another shape.
    """
    layers = read_caffemodel(path)
    network_name = type(network).__name__
    expected = {
        name: module
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    blobs_by_name = {
        layer.replace("/", "."): (layer, blobs)
        for layer, blobs in layers.items()
        if layer.partition("/")[0] not in getattr(network, "training_only", ())
    }
    if missing := [name for name in expected if name not in blobs_by_name]:
        raise UserError(
            f"{path}: has no layer '{missing[0]}' of {network_name} ({len(missing)} of "
            f"{len(expected)} layers are missing; the file has {_first_names(layers)}). The file "
            "is truncated or holds the weights of another network. Download it again, or use "
            "another file."
        )
    if surplus := [layer for name, (layer, _) in blobs_by_name.items() if name not in expected]:
        raise UserError(
            f"{path}: has a layer '{surplus[0]}' that {network_name} does not have "
            f"({len(surplus)} such layers in total). The file holds the weights of another "
            "network. Use another file."
        )
    return {
        f"{name}.{part}": tensor
        for name, module in expected.items()
        for part, tensor in _tensors(path, *blobs_by_name[name], module)
    }


def read_caffemodel(path: Path) -> dict[str, list[NDArray]]:
    """Return the blobs of each layer that has blobs, by Caffe's layer name, in file order.

    Both of Caffe's formats are supported: the current `layer` and the older `layers` (before
    2015). In the older format every blob has four dimensions: a bias of length T has the shape
    1 x 1 x 1 x T.

    Raises
    ------
    UserError
        If the file is not a `.caffemodel` or is truncated.
    """
    model = _net_parameter()()
    try:
        model.ParseFromString(path.read_bytes())
        layers = {
            layer.name: [_array(path, layer.name, blob) for blob in layer.blobs]
            for layer in (*model.layers, *model.layer)
            if layer.blobs
        }
    except (DecodeError, ValueError) as error:
        raise UserError(
            f"{path}: not a complete .caffemodel file ({path.stat().st_size} bytes). The file has "
            "another format or is truncated. Download it again."
        ) from error
    if not layers:
        raise UserError(
            f"{path}: has no layers with weights ({path.stat().st_size} bytes); expected a "
            ".caffemodel file. Use the file with the weights, not the .prototxt next to it."
        )
    return layers


def _array(path: Path, layer: str, blob: Message) -> NDArray:
    # Use a bytearray: a tensor needs memory that it can write to.
    if blob.double_data:
        data = np.frombuffer(bytearray().join(blob.double_data), "<f8")
    else:
        data = np.frombuffer(bytearray().join(blob.data), "<f4")
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    if min(shape) < 0 or math.prod(shape) != data.size:
        raise UserError(
            f"{path}: a blob of layer '{layer}' holds {data.size} values, but its shape {shape} "
            f"needs {math.prod(shape)}. The file is damaged. Download it again."
        )
    return data.reshape(shape)


def _tensors(
    path: Path, layer: str, blobs: list[NDArray], module: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight and the bias of one layer with the names and shapes of the module."""
    parameters = {
        part: tuple(tensor.shape) for part, tensor in module.named_parameters(recurse=False)
    }
    shapes = [blob.shape for blob in blobs]
    expected = list(parameters.values())
    if [_without_ones(shape) for shape in shapes] != [_without_ones(shape) for shape in expected]:
        raise UserError(
            f"{path}: layer '{layer}' has blobs of shape {_listed(shapes)}, expected "
            f"{_listed(expected)}. The file holds the weights of another network. Use another "
            "file."
        )
    for (part, shape), blob in zip(parameters.items(), blobs, strict=True):
        yield part, torch.from_numpy(blob.reshape(shape))


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """Drop dimensions of size 1, so that shapes of both file formats can be compared."""
    return [size for size in shape if size != 1]


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes)


def _first_names(layers: dict[str, list[NDArray]]) -> str:
    shown = ", ".join(f"'{name}'" for name in list(layers)[:3])
    return shown + (", ..." if len(layers) > 3 else "")


_Field = descriptor_pb2.FieldDescriptorProto

# The fields of Caffe's caffe.proto that are needed to reach the weights, by message: name, number,
# label, type (or the name of a nested message). The parser skips all other fields. Packed numbers
# are declared as bytes, so that 100 million values are not converted to Python floats.
_FIELDS = {
    "NetParameter": (
        ("layers", 2, _Field.LABEL_REPEATED, "V1LayerParameter"),
        ("layer", 100, _Field.LABEL_REPEATED, "LayerParameter"),
    ),
    "V1LayerParameter": (
        ("name", 4, _Field.LABEL_OPTIONAL, _Field.TYPE_STRING),
        ("blobs", 6, _Field.LABEL_REPEATED, "BlobProto"),
    ),
    "LayerParameter": (
        ("name", 1, _Field.LABEL_OPTIONAL, _Field.TYPE_STRING),
        ("blobs", 7, _Field.LABEL_REPEATED, "BlobProto"),
    ),
    "BlobProto": (
        ("num", 1, _Field.LABEL_OPTIONAL, _Field.TYPE_INT64),
        ("channels", 2, _Field.LABEL_OPTIONAL, _Field.TYPE_INT64),
        ("height", 3, _Field.LABEL_OPTIONAL, _Field.TYPE_INT64),
        ("width", 4, _Field.LABEL_OPTIONAL, _Field.TYPE_INT64),
        ("data", 5, _Field.LABEL_REPEATED, _Field.TYPE_BYTES),
        ("shape", 7, _Field.LABEL_OPTIONAL, "BlobShape"),
        ("double_data", 8, _Field.LABEL_REPEATED, _Field.TYPE_BYTES),
    ),
    "BlobShape": (("dim", 1, _Field.LABEL_REPEATED, _Field.TYPE_INT64),),
}


@cache
def _net_parameter() -> type[Message]:
    """Build the class of Caffe's message NetParameter, which is a complete `.caffemodel`."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for message, fields in _FIELDS.items():
        declared = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            field = declared.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = kind
    # Use a separate pool: other packages declare messages with these names in the default pool.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
