"""Count the parameters and multiply-accumulates (MACs) of an ONNX file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from lowrank.errors import UserError
from lowrank.onnx_files.macs import macs_of, uncounted_operator

_FLOATING_POINT = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
)  # fmt: skip


@dataclass(frozen=True)
class LayerCount:
    """Counts of one node that has parameters or MACs."""

    name: str
    op: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Parameters, MACs and size of one ONNX file.

    Attributes
    ----------
    parameters
        Number of elements of all floating-point tensors. Scalars are not counted, because they are
        constants of operators (a padding value, a clipping bound).
    macs
        Multiply-accumulates of convolutions and matrix products for a batch of one image. Products
        of activations (attention) and recurrent layers are included.
    size_bytes
        Size of the file, plus the size of the file with its weights if there is one.
    layers
        Counts of the nodes, in the order of the graph.
    not_counted
        Types of operators that may contain MACs, but cannot be counted.
    """

    parameters: int
    macs: int
    size_bytes: int
    layers: list[LayerCount]
    not_counted: tuple[str, ...] = ()


def count(path: str | os.PathLike) -> Counts:
    """Count the parameters of an ONNX file, and its MACs for a batch of one image.

    Raises UserError if the file is missing or not an ONNX model, or if its graph does not define
    the shapes that the counts need.
    """
    path = Path(path)
    model = _at_batch_one(_load(path), path)
    shapes = _shapes(model.graph)
    sizes = _parameter_sizes(model.graph)
    total = sum(sizes.values())
    layers, not_counted = [], set()
    for node in model.graph.node:
        # Count a tensor that several nodes share only once, for the first node.
        parameters = sum(sizes.pop(name, 0) for name in node.input)
        if operator := uncounted_operator(node):
            not_counted.add(operator)
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
        # Do not load external data: values are not needed and may not fit into one message.
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such ONNX file.") from error
    except DecodeError as error:
        raise UserError(_damaged(path)) from error
    if not model.graph.node:
        raise UserError(_damaged(path))
    return model


def _data_files(model: ModelProto, path: Path) -> set[Path]:
    """Return the external files with the weights of a model that is too large for one file."""
    return {
        path.with_name(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _damaged(path: Path) -> str:
    return (
        f"{path}: not a complete ONNX model ({path.stat().st_size} bytes). Delete the file and "
        "run the same command again."
    )


def _at_batch_one(model: ModelProto, path: Path) -> ModelProto:
    """Set the first dimension of the inputs to 1 and infer all shapes again."""
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    shapes = [v.type.tensor_type.shape for v in graph.input if v.name not in weights]
    batches = [shape.dim[0] for shape in shapes if shape.dim]
    if any(batch.dim_value != 1 for batch in batches):
        # Delete shapes for other batch sizes: they would contradict the inferred shapes.
        graph.ClearField("value_info")
    for batch in batches:
        batch.dim_value = 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UserError(
            f"{path}: the shapes in this ONNX model are inconsistent for a batch of one image "
            f"({str(error).strip().splitlines()[0]}). Export the network again."
        ) from error


def _shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all values with known dimensions, by name."""
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    values: Iterable[ValueInfoProto] = [*graph.input, *graph.value_info, *graph.output]
    for value in values:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _parameter_sizes(graph: GraphProto) -> dict[str, int]:
    """Return the number of elements of each floating-point tensor by name, without scalars."""
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
