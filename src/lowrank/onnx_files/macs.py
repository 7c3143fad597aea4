"""Count the multiply-accumulates (MACs) of one node of an ONNX graph."""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from onnx import NodeProto, helper

from lowrank.errors import UserError

# Function that returns the shape of a tensor by name, or raises UserError for an unknown shape.
_Shape = Callable[[str], tuple[int, ...]]

# Operators that may contain MACs, because they run a subgraph or a transform.
_UNKNOWN = frozenset({"If", "Loop", "Scan", "SequenceMap", "DFT", "STFT"})

_OWN_DOMAINS = ("", "ai.onnx")


def uncounted_operator(node: NodeProto) -> str | None:
    """Return the type of an operator whose MACs cannot be counted, or None."""
    if node.domain not in _OWN_DOMAINS:
        return f"{node.domain}.{node.op_type}"
    if node.op_type == "Einsum" and len(node.input) > 2:
        return f"Einsum with {len(node.input)} operands"
    return node.op_type if node.op_type in _UNKNOWN else None


def macs_of(node: NodeProto, shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    """Return the MACs of a node, or 0 for a node without convolution or matrix product.

    Parameters
    ----------
    node
        Node with a standard operator.
    shapes
        Shapes by tensor name.
    path
        ONNX file to name in messages.

    Raises
    ------
    UserError
        If a shape that the count needs is not known.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(
                f"{path}: the shape of '{name}' at node '{node.name}' ({node.op_type}) cannot be "
                "inferred from the graph, so its MACs cannot be counted. Export the network with "
                "fixed dimensions, except the batch size."
            )
        return shapes[name]

    count_macs = _COUNTS.get(node.op_type)
    return count_macs(node, shape) if count_macs else 0


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _convolution(node: NodeProto, shape: _Shape, kernel: int = 1) -> int:
    # The kernel has the shape (outputs, inputs / groups, height, width).
    return prod(shape(node.output[0])) * prod(shape(node.input[kernel])[1:])


def _quantized_convolution(node: NodeProto, shape: _Shape) -> int:
    return _convolution(node, shape, kernel=3)


def _transposed_convolution(node: NodeProto, shape: _Shape) -> int:
    # Each input is multiplied once by its kernel: (inputs, outputs / groups, height, width).
    return prod(shape(node.input[0])) * prod(shape(node.input[1])[1:])


def _product(node: NodeProto, shape: _Shape) -> int:
    return prod(shape(node.output[0])) * shape(node.input[0])[-1]


def _general_product(node: NodeProto, shape: _Shape) -> int:
    summed = 0 if _attributes(node).get("transA") else 1
    return prod(shape(node.output[0])) * shape(node.input[0])[summed]


def _einsum(node: NodeProto, shape: _Shape) -> int:
    """Return one MAC for each combination of the indices of two operands; 0 for one operand."""
    if len(node.input) < 2:
        return 0
    terms = _attributes(node)["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, terms, strict=True):
        dimensions = list(shape(name))
        before, dots, after = term.partition("...")
        # Dimensions covered by the ellipsis are aligned at their ends, as in broadcasting.
        covered = len(dimensions) - len(before) - len(after) if dots else 0
        indices = [*before, *(f".{position}" for position in range(covered, 0, -1)), *after]
        for index, size in zip(indices, dimensions, strict=True):
            sizes[index] = max(sizes.get(index, 1), size)
    return prod(sizes.values())


def _attention(node: NodeProto, shape: _Shape) -> int:
    """Return the MACs of queries times keys, and of the result times values."""
    queries, keys, values = (shape(name) for name in node.input[:3])
    if len(queries) == 4:
        heads, width = queries[1], queries[3]
    else:
        heads = _attributes(node)["q_num_heads"]
        width = queries[2] // heads
    groups = keys[1] if len(keys) == 4 else _attributes(node)["kv_num_heads"]
    width_of_values = values[3] if len(values) == 4 else values[2] // groups
    past = shape(node.input[4])[2] if len(node.input) > 4 and node.input[4] else 0
    pairs = queries[0] * heads * queries[-2] * (keys[-2] + past)
    return pairs * (width + width_of_values)


def _recurrent(node: NodeProto, shape: _Shape) -> int:
    # The weights of all directions and gates are applied once per step of each sequence.
    steps = prod(shape(node.input[0])[:2])
    return steps * (prod(shape(node.input[1])) + prod(shape(node.input[2])))


_COUNTS: dict[str, Callable[[NodeProto, _Shape], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "DeformConv": _convolution,
    "QLinearConv": _quantized_convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _general_product,
    "Einsum": _einsum,
    "Attention": _attention,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
}
