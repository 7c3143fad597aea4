"""Parameters and multiply-accumulates of a network, counted on its ONNX file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from lowrank.errors import UserError
from lowrank.onnx_files.macs import macs_of, why_not_counted

_FLOATING_POINT = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
)  # fmt: skip


@dataclass(frozen=True)
class LayerCount:
    """One node that holds parameters or multiplies: its name, operator and counts."""

    name: str
    op: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """What one file holds, and what one image costs.

    `parameters` are the elements of all floating-point tensors; scalars are not among them, for
    they are constants of an operator (the value that pads, a bound that clips). `macs` are the
    multiply-accumulates of convolutions and matrix products for a batch of one, those between
    activations (attention) and of recurrent layers included. `size_bytes` is the file's, with that
    of a second one that holds its weights. `layers` are in the order of the graph. `not_counted`
    holds the types of operators that may multiply and accumulate and are not among `macs`.
    """

    parameters: int
    macs: int
    size_bytes: int
    layers: list[LayerCount]
    not_counted: tuple[str, ...] = ()


def count(path: str | os.PathLike) -> Counts:
    """Count the parameters and the MACs, at a batch of one, of an ONNX file.

    Raises UserError when the file is missing or no ONNX model, or when its graph does not settle
    the shapes that the counts need.
    """
    path = Path(path)
    model = _at_batch_one(_load(path), path)
    shapes = _shapes(model.graph)
    sizes = _parameter_sizes(model.graph)
    total = sum(sizes.values())
    layers, not_counted = [], set()
    for node in model.graph.node:
        # A tensor that two nodes share is the first one's: each is counted once.
        parameters = sum(sizes.pop(name, 0) for name in node.input)
        if type_ := why_not_counted(node):
            not_counted.add(type_)
            macs = 0
        else:
            macs = macs_of(node, shapes, path)
        if parameters or macs:
            layers.append(LayerCount(node.name, node.op_type, parameters, macs))
    return Counts(
        parameters=total,
        macs=sum(layer.macs for layer in layers),
        size_bytes=path.stat().st_size + sum(f.stat().st_size for f in _data_files(model, path)),
        layers=layers,
        not_counted=tuple(sorted(not_counted)),
    )


def _load(path: Path) -> ModelProto:
    try:
        # Values are not needed, and those in a file of their own may not fit into one message.
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such ONNX file.") from error
    except DecodeError as error:
        raise UserError(_damaged(path)) from error
    if not model.graph.node:
        raise UserError(_damaged(path))
    return model


def _data_files(model: ModelProto, path: Path) -> set[Path]:
    """The files that hold the weights of a model too large for one."""
    return {
        path.with_name(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _damaged(path: Path) -> str:
    return (
        f"{path}: not a whole ONNX model ({path.stat().st_size} bytes). Delete it and run the "
        "same command again."
    )


def _at_batch_one(model: ModelProto, path: Path) -> ModelProto:
    """Set the first dimension of the inputs to 1, and infer all shapes anew."""
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    for value in graph.input:
        if value.name not in weights and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    # Shapes noted for another batch would contradict the ones to infer.
    graph.ClearField("value_info")
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UserError(
            f"{path}: the shapes in this ONNX model contradict each other at a batch of one "
            f"({str(error).strip().splitlines()[0]}). Export it again."
        ) from error


def _shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Collect, by name, the shapes of all values whose every dimension is known."""
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    values: Iterable[ValueInfoProto] = [*graph.input, *graph.value_info, *graph.output]
    for value in values:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _parameter_sizes(graph: GraphProto) -> dict[str, int]:
    """Elements of each floating-point tensor that the graph holds, scalars left out, by name."""
    tensors = {initializer.name: initializer for initializer in graph.initializer}
    sizes = {}
    for node in graph.node:
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                tensors[node.output[0]] = attribute.t
            elif attribute.type == AttributeProto.FLOATS:
                sizes[node.output[0]] = len(attribute.floats)
    for name, tensor in tensors.items():
        if tensor.data_type in _FLOATING_POINT and tensor.dims:
            sizes[name] = prod(tensor.dims)
    return sizes
