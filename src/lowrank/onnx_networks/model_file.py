"""Read an ONNX file of a user, and refuse what cannot be compressed with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    uses_external_data,
)

from lowrank.errors import UserError
from lowrank.files import written_whole

# Older operator sets define Conv and Gemm in the same way, but ONNX Runtime no longer runs them.
OLDEST_OPSET = 9

# Protocol buffers cannot hold more.
LARGEST_BYTES = 2**31 - 1

# Numbers of channels of images.
_CHANNELS = (1, 3)

_STANDARD = ("", "ai.onnx")

# Operators of quantized networks. Their weights are integers with scales.
_QUANTIZED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        *("QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QAttention", "MatMulNBits"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a network with all its weights.

    Raises
    ------
    UserError
        If the file is missing, truncated or not an ONNX file; if files of its external data are
        missing; if it is larger than 2 GiB with them; if its operator set is older than 9 or newer
        than the installed onnx; or if it is already quantized.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected an ONNX file.")
    model = _parsed(path)
    _require_supported_opset(path, model)
    _require_float(path, model)
    _load_external_data(path, model)
    return model


def write_model(path: str | os.PathLike[str], model: onnx.ModelProto) -> None:
    """Write a network to a single file, atomically, after ONNX has checked it.

    Raises UserError if the file cannot be written.
    """
    onnx.checker.check_model(model)
    with written_whole(path) as partial:
        partial.write_bytes(model.SerializeToString())


def nodes_of(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield all nodes, and whether they are in a subgraph, such as the body of a loop."""
    for node in graph.node:
        yield node, False
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
            graphs += attribute.graphs
            for subgraph in graphs:
                yield from ((inner, True) for inner, _ in nodes_of(subgraph))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set; 0 if the file names none."""
    return max(
        (entry.version for entry in model.opset_import if entry.domain in _STANDARD), default=0
    )


def custom_operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators outside the standard set, as `domain.Operator`, sorted."""
    functions = {(function.domain, function.name) for function in model.functions}
    return sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node, _ in nodes_of(model.graph)
            if node.domain not in _STANDARD and (node.domain, node.op_type) not in functions
        }
    )


def _parsed(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise UserError(_too_large(path, size))
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(
            f"{path}: not an ONNX file, or truncated ({size} bytes: {error}). Export or download "
            "it again."
        ) from error
    # Any bytes can happen to be a message of unknown fields.
    if not model.graph.node or not model.graph.output:
        raise UserError(
            f"{path}: not an ONNX file: it holds no graph with nodes and outputs. Give the file "
            "that the exporter wrote."
        )
    return model


def _require_supported_opset(path: Path, model: onnx.ModelProto) -> None:
    version, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if version > newest:
        raise UserError(
            f"{path}: uses version {version} of ONNX's operator set, but the installed onnx "
            f"{onnx.__version__} knows versions up to {newest}. Install a newer onnx and "
            "onnxruntime, or export the network with an older operator set."
        )
    if version < OLDEST_OPSET:
        raise UserError(
            f"{path}: uses version {version} of ONNX's operator set; expected {OLDEST_OPSET} or "
            "newer. Convert it first: `onnx.version_converter.convert_version(model, 13)`."
        )


def _require_float(path: Path, model: onnx.ModelProto) -> None:
    for node, _ in nodes_of(model.graph):
        if node.op_type in _QUANTIZED:
            raise UserError(
                f"{path}: is already quantized (node '{node.name or node.output[0]}' is a "
                f"{node.op_type}). Low-rank factors need the weights in float: give the network "
                "from before the quantization, and quantize the result."
            )


def _load_external_data(path: Path, model: onnx.ModelProto) -> None:
    tensors = [tensor for tensor in _tensors(model.graph) if uses_external_data(tensor)]
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path}: its weights are in other files that are missing: {', '.join(missing)}. Put "
            f"them into the folder {path.parent}."
        )
    size = model.ByteSize() + sum((path.parent / name).stat().st_size for name in names)
    if size > LARGEST_BYTES:
        raise UserError(_too_large(path, size))
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UserError(
            f"{path}: its weights in other files cannot be read ({error}). Export or download all "
            "files again."
        ) from error


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all stored tensors of a graph and its subgraphs."""
    yield from graph.initializer
    for node, _ in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from attribute.g.initializer


def _too_large(path: Path, size: int) -> str:
    return (
        f"{path}: has {size / 2**30:.1f} GiB with its weights; networks of up to 2 GiB are "
        "supported, because a single ONNX file cannot hold more."
    )


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must give: those that are not stored weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [graph_input for graph_input in model.graph.input if graph_input.name not in stored]


def input_types(model: onnx.ModelProto) -> dict[str, str]:
    """Return the type of each input as NumPy names it, such as `float32` or `int64`."""
    return {
        entry.name: onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type).name
        for entry in inputs_of(model)
    }


def fixed_batch(inputs: Sequence[onnx.ValueInfoProto]) -> int:
    """Return the number of samples that inputs fix by the size of their first axis; 0 if none."""
    shapes = [entry.type.tensor_type.shape.dim for entry in inputs]
    return max((0, *(shape[0].dim_value for shape in shapes if shape)))


def input_shapes(
    path: str | os.PathLike[str],
    model: onnx.ModelProto,
    given: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input for one sample.

    Parameters
    ----------
    path
        The file, for messages.
    model
        The network.
    given
        Shapes by the name of an input, needed where the file leaves sizes open. An open first axis
        counts as the batch and is 1 if it is not given.

    Raises
    ------
    UserError
        If an input of `given` does not exist, its shape contradicts the file, or an open size other
        than the batch is not given.
    """
    given = given or {}
    inputs = {graph_input.name: graph_input for graph_input in inputs_of(model)}
    if unknown := given.keys() - inputs:
        raise UserError(
            f"inputs: {path} has no input '{min(unknown)}'; its inputs are "
            f"{', '.join(map(repr, inputs))}. Correct the name."
        )
    shapes = {}
    for name, graph_input in inputs.items():
        sizes = [
            dim.dim_value if dim.dim_value > 0 else None
            for dim in graph_input.type.tensor_type.shape.dim
        ]
        if name in given:
            shape = tuple(given[name])
            if len(shape) != len(sizes) or any(
                size not in (None, wanted) for size, wanted in zip(sizes, shape, strict=True)
            ):
                raise UserError(
                    f"inputs: '{name}' of {path} has the shape {_text(sizes)}, but {list(shape)} "
                    "was given. Give a shape that agrees where the file states a size."
                )
        else:
            shape = tuple(
                1 if size is None and axis == 0 else size or 0 for axis, size in enumerate(sizes)
            )
        if any(size < 1 for size in shape):
            example = [size or 224 for size in (1, *sizes[1:])]
            raise UserError(
                f"{path}: leaves the size of input '{name}' open: {_text(sizes)}. Give the size of "
                f"one sample, such as `inputs: {{{name}: {example}}}`."
            )
        shapes[name] = shape
    return shapes


def layout_of(shape: Sequence[int]) -> str:
    """Return the layout of a batch of images: `nhwc` if only the last axis can be the channels."""
    if len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS:
        return "nhwc"
    return "nchw"


def _text(sizes: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
