"""Nodes between layers that lose accuracy and time in int8."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

# Activation functions, normalizations and gates. ONNX Runtime computes them in int8, too, but
# rounds each result to eight bits. Exporters write an activation function such as hard swish as up
# to five nodes, whose errors add up (docs/int8.md has figures).
_INEXACT = frozenset(
    {
        *("Mul", "LeakyRelu", "Sigmoid", "Softmax", "Where", "CumSum"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
    }
)


def float_nodes(graph: onnx.GraphProto, weighted: frozenset[str]) -> Iterator[str]:
    """Return the names of the nodes without weights that stay in float.

    Sums of two maps, pooling, ReLU and nodes that only move values lose nothing in int8. A Clip
    right behind a node with weights is merged with it.

    Parameters
    ----------
    graph
        Graph of the network, whose constants are initializers and whose nodes have names.
    weighted
        Names of its nodes with weights.
    """
    constants = {initializer.name for initializer in graph.initializer}
    makers = {name: node.name for node in graph.node for name in node.output}
    for node in graph.node:
        is_shift = node.op_type == "Add" and any(name in constants for name in node.input)
        is_alone = node.op_type == "Clip" and makers.get(node.input[0]) not in weighted
        if node.op_type in _INEXACT or is_shift or is_alone:
            yield node.name
