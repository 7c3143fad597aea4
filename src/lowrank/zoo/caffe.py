"""Trained weights in Caffe's `.caffemodel` files."""

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
    """The tensors of a `.caffemodel` by the names that the network has for them.

    A layer is looked for under Caffe's name for it, with a dot for each slash: the weight of
    `inception_3a/1x1` is `inception_3a.1x1.weight`. Layers that serve training alone are left out:
    the network names them in an attribute `training_only`, by the part before the slash.

    Raises
    ------
    UserError
        As `read_caffemodel`, and when the file lacks a layer of the network, holds one that the
        network has not, or holds one of another shape.
    """
    layers = read_caffemodel(path)
    network_name = type(network).__name__
    expected = {
        name: module
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    found = {
        layer.replace("/", "."): (layer, blobs)
        for layer, blobs in layers.items()
        if layer.partition("/")[0] not in getattr(network, "training_only", ())
    }
    if missing := [name for name in expected if name not in found]:
        raise UserError(
            f"{path}: holds no layer for '{missing[0]}' of {network_name} ({len(missing)} of its "
            f"{len(expected)} layers are missing; the file's are {_some(layers)}). It was cut off, "
            "or holds the weights of another network: fetch it again, or name another file."
        )
    if surplus := [layer for name, (layer, _) in found.items() if name not in expected]:
        raise UserError(
            f"{path}: holds a layer '{surplus[0]}' that {network_name} has not ({len(surplus)} in "
            "all): these are the weights of another network. Name another file."
        )
    return {
        f"{name}.{part}": tensor
        for name, module in expected.items()
        for part, tensor in _tensors(path, *found[name], module)
    }


def read_caffemodel(path: Path) -> dict[str, list[NDArray]]:
    """The blobs of each layer that has any, by Caffe's name for the layer, in the file's order.

    Both of Caffe's forms are read: `layer`, and `layers` of before 2015, whose blobs have four
    dimensions, a bias of T being 1 x 1 x 1 x T.

    Raises
    ------
    UserError
        When the file is no `.caffemodel`, or was cut off.
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
            f"{path}: not a whole .caffemodel ({path.stat().st_size} bytes). It is of another "
            "kind, or was cut off while it was copied: fetch it again."
        ) from error
    if not layers:
        raise UserError(
            f"{path}: holds no layers with weights ({path.stat().st_size} bytes), where a "
            ".caffemodel was expected. Name the file of weights, not the .prototxt beside it."
        )
    return layers


def _array(path: Path, layer: str, blob: Message) -> NDArray:
    # A bytearray, because a tensor must be able to write to its memory.
    if blob.double_data:
        data = np.frombuffer(bytearray().join(blob.double_data), "<f8")
    else:
        data = np.frombuffer(bytearray().join(blob.data), "<f4")
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    if min(shape) < 0 or math.prod(shape) != data.size:
        raise UserError(
            f"{path}: a blob of layer '{layer}' holds {data.size} numbers, where its shape "
            f"{shape} asks for {math.prod(shape)}. The file is damaged: fetch it again."
        )
    return data.reshape(shape)


def _tensors(
    path: Path, layer: str, blobs: list[NDArray], module: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """The weight and the bias of one layer, in the module's own shapes, by their names in it."""
    parameters = {
        part: tuple(tensor.shape) for part, tensor in module.named_parameters(recurse=False)
    }
    shapes = [blob.shape for blob in blobs]
    expected = list(parameters.values())
    if [_without_ones(shape) for shape in shapes] != [_without_ones(shape) for shape in expected]:
        raise UserError(
            f"{path}: layer '{layer}' holds {_listed(shapes)}, where {_listed(expected)} were "
            "expected: these are the weights of another network. Name another file."
        )
    for (part, shape), blob in zip(parameters.items(), blobs, strict=True):
        yield part, torch.from_numpy(blob.reshape(shape))


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """A shape in which those agree that Caffe gave four dimensions and those that it did not."""
    return [size for size in shape if size != 1]


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes)


def _some(names: dict[str, list[NDArray]]) -> str:
    shown = ", ".join(f"'{name}'" for name in list(names)[:3])
    return shown + (", ..." if len(names) > 3 else "")


_Field = descriptor_pb2.FieldDescriptorProto

# The fields of Caffe's caffe.proto that lead to weights, by message: name, number, label, type (or
# the message that it is). A reader skips all others. Packed numbers are bytes in the file:
# declared as bytes, a hundred million of them need not become Python's floats.
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
    """The class of Caffe's message NetParameter: a whole `.caffemodel`."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for message, fields in _FIELDS.items():
        declared = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            field = declared.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = kind
    # A pool of its own: other packages declare messages of these names in the common one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
