"""Mix the channels between two nodes with weights, so that eight bits represent them well.

Between two factors of a layer there is no activation function, so any invertible matrix can be
multiplied into the first factor and its inverse into the second one. Two changes of this kind
reduce the rounding errors of int8, where all channels share one scale:

- Remove the means. Factors that approximate outputs on data (`lowrank.factorize.moments`) leave the
  mean of the inputs out of account, so the means between them can be far larger than the
  deviations. The bias of the first node removes them, and the bias of the second one adds their
  effect again.
- Spread the channels. Factors are ordered by importance: a few channels have most of the variance.
  An orthogonal matrix that spreads each channel over all others gives them similar ranges (Ashkboos
  et al. 2024, "QuaRot", for language models).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx

from lowrank.onnx_files.weighted_nodes import WeightedNode, Weights, channel_means


def mix_channels(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, np.ndarray]], label: str
) -> int:
    """Mix the channels between consecutive nodes with weights, and remove their means.

    The network computes the same, up to rounding in float32. Means stay if the second node pads its
    input, because its zeros have no mean, and between products without a bias.

    Parameters
    ----------
    model
        The network, whose constants are initializers. It is changed.
    batches
        Inputs by name, for the means; some tens of samples are enough.
    label
        Name of the network for messages.

    Returns
    -------
    int
        Number of pairs of nodes.

    Raises
    ------
    UserError
        If ONNX Runtime cannot run the network on the batches.
    """
    weights = Weights(model.graph)
    pairs = list(_pairs(model.graph, weights))
    centered = [
        (first, second)
        for first, second in pairs
        if first.takes_bias and second.takes_bias and not second.is_padded
    ]
    axes = {first.node.output[0]: first.channels for first, _ in centered}
    means = channel_means(model, axes, batches, label)
    for first, second in centered:
        _center(first, second, means[first.node.output[0]], weights)
    for first, second in pairs:
        _spread(first, second, weights)
    return len(pairs)


def _pairs(graph: onnx.GraphProto, weights: Weights) -> Iterator[tuple[WeightedNode, WeightedNode]]:
    """Return nodes with weights whose only reader is another one with the same groups."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}

    def usable(node: onnx.NodeProto) -> WeightedNode | None:
        constants = [name for name in node.input[1:] if name]
        if not all(name in weights and len(readers[name]) == 1 for name in constants):
            return None
        if node.op_type == "MatMul" and [len(weights.shape(name)) for name in constants] != [2]:
            # A product of two maps, with a vector, or with several matrices.
            return None
        return WeightedNode.of(node)

    for node in graph.node:
        if not node.output or node.output[0] in outputs:
            continue
        behind = readers.get(node.output[0], [])
        if len(behind) != 1 or behind[0].input[0] != node.output[0]:
            continue
        first, second = usable(node), usable(behind[0])
        if first is None or second is None or first.groups != second.groups:
            continue
        # Depthwise nodes have one channel in each group, so there is nothing to mix.
        if first.channels == second.channels and _width(second, weights) > 1:
            yield first, second


def _width(second: WeightedNode, weights: Weights) -> int:
    """Return the number of channels between two nodes, of one group."""
    return weights.shape(second.node.input[1])[second.inputs]


def _center(first: WeightedNode, second: WeightedNode, means: np.ndarray, weights: Weights) -> None:
    """Subtract the means between two nodes, and add their effect behind the second one."""
    effect = second.response(weights[second.node.input[1]], means)
    for node, change in ((first.node, -means), (second.node, effect)):
        bias = weights.bias(node, len(change))
        # The bias of a Gemm may be a single number.
        weights[node.input[2]] = np.broadcast_to(bias, change.shape) + change


def _spread(first: WeightedNode, second: WeightedNode, weights: Weights) -> None:
    """Multiply an orthogonal matrix into the first node, and its inverse into the second one."""
    matrix = spreading_matrix(_width(second, weights))
    name = second.node.input[1]
    weights[name] = _along(weights[name], matrix, second.inputs)
    whole = np.kron(np.eye(first.groups), matrix)
    name = first.node.input[1]
    weights[name] = _along(weights[name], whole, first.outputs)
    if len(first.node.input) > 2 and first.node.input[2]:
        name = first.node.input[2]
        weights[name] = whole @ np.broadcast_to(weights[name], len(whole))


def _along(weight: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Return the weight with a matrix multiplied along one axis."""
    return np.moveaxis(np.tensordot(matrix, weight, (1, axis)), 0, axis)


def spreading_matrix(size: int) -> np.ndarray:
    """Return an orthogonal matrix with entries of similar size: a cosine transform with signs.

    Without the signs, channels with similar values would add up in the first row.
    """
    row, column = np.ogrid[:size, :size]
    matrix = np.cos(np.pi * (2 * column + 1) * row / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size)
    signed: np.ndarray = matrix * signs
    return signed
