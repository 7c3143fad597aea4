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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank.core.tensors import length
from lowrank.onnx_networks.model_run import ModelRun, only_outputs

# Number of samples from which the means are taken.
_SAMPLES = 64


@dataclass(frozen=True)
class _Node:
    """A node with a constant weight.

    Parameters
    ----------
    node
        The node.
    outputs, inputs
        Axis of the weight with the output channels, and with the input channels of one group.
    channels
        Axis of its output with the channels.
    groups
        Number of groups.
    takes_bias
        Whether the node can have a bias as its third input.
    is_padded
        Whether it pads its input with zeros.
    """

    node: onnx.NodeProto
    outputs: int
    inputs: int
    channels: int
    groups: int
    takes_bias: bool
    is_padded: bool

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Node | None:
        """Return the node if it is a convolution or a product with a matrix."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            is_padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"") in (
                b"SAME_UPPER",
                b"SAME_LOWER",
            )
            return cls(node, 0, 1, 1, attributes.get("group", 1), True, is_padded)
        if node.op_type == "Gemm":
            scales = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0))
            if scales != (1.0, 1.0) or attributes.get("transA", 0):
                return None
            inputs = 1 if attributes.get("transB", 0) else 0
            return cls(node, 1 - inputs, inputs, 1, 1, True, False)
        if node.op_type == "MatMul":
            return cls(node, 1, 0, -1, 1, False, False)
        return None


class _Weights:
    """The initializers of a graph, as arrays in float64."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._by_name = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        tensor = self._by_name.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an initializer."""
        return tuple(self._by_name[name].dims)

    def __getitem__(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._by_name[name]).astype(np.float64)

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        self._by_name[name].CopyFrom(tensor)

    def bias(self, node: onnx.NodeProto, size: int) -> np.ndarray:
        """Return the bias of a node, which gets one if it has none."""
        if len(node.input) < 3 or not node.input[2]:
            name = f"{node.output[0]}_bias"
            del node.input[2:]
            node.input.append(name)
            self._graph.initializer.append(
                numpy_helper.from_array(np.zeros(size, np.float32), name)
            )
            self._by_name[name] = self._graph.initializer[-1]
        return self[node.input[2]]


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
    weights = _Weights(model.graph)
    pairs = list(_pairs(model.graph, weights))
    centered = [
        (first, second)
        for first, second in pairs
        if first.takes_bias and second.takes_bias and not second.is_padded
    ]
    means = _means(model, [first for first, _ in centered], batches, label)
    for first, second in centered:
        _center(first, second, means[first.node.output[0]], weights)
    for first, second in pairs:
        _spread(first, second, weights)
    return len(pairs)


def _pairs(graph: onnx.GraphProto, weights: _Weights) -> Iterator[tuple[_Node, _Node]]:
    """Return nodes with weights whose only reader is another one with the same groups."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}

    def usable(node: onnx.NodeProto) -> _Node | None:
        constants = [name for name in node.input[1:] if name]
        if not all(name in weights and len(readers[name]) == 1 for name in constants):
            return None
        if node.op_type == "MatMul" and [len(weights.shape(name)) for name in constants] != [2]:
            # A product of two maps, with a vector, or with several matrices.
            return None
        return _Node.of(node)

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


def _width(second: _Node, weights: _Weights) -> int:
    """Return the number of channels between two nodes, of one group."""
    return weights.shape(second.node.input[1])[second.inputs]


def _means(
    model: onnx.ModelProto,
    nodes: Sequence[_Node],
    batches: Iterable[Mapping[str, np.ndarray]],
    label: str,
) -> dict[str, np.ndarray]:
    """Return the mean of each channel of the outputs of some nodes, by name of the output."""
    if not nodes:
        return {}
    run = ModelRun(only_outputs(model, [node.node.output[0] for node in nodes]), label)
    sums: dict[str, np.ndarray] = {}
    count = samples = 0
    for batch in batches:
        values = run(batch)
        for node in nodes:
            name = node.node.output[0]
            by_channel = np.moveaxis(values[name], node.channels, 0)
            means = by_channel.reshape(len(by_channel), -1).mean(1, np.float64)
            sums[name] = sums[name] + means if name in sums else means
        count, samples = count + 1, samples + length(batch)
        if samples >= _SAMPLES:
            break
    return {name: total / count for name, total in sums.items()}


def _center(first: _Node, second: _Node, means: np.ndarray, weights: _Weights) -> None:
    """Subtract the means between two nodes, and add their effect behind the second one."""
    weight = np.moveaxis(weights[second.node.input[1]], (second.outputs, second.inputs), (0, 1))
    by_input = weight.reshape(*weight.shape[:2], -1).sum(2)
    of_groups = by_input.reshape(second.groups, -1, by_input.shape[1])
    effect = (of_groups @ means.reshape(second.groups, -1, 1)).ravel()
    for node, change in ((first.node, -means), (second.node, effect)):
        bias = weights.bias(node, len(change))
        # The bias of a Gemm may be a single number.
        weights[node.input[2]] = np.broadcast_to(bias, change.shape) + change


def _spread(first: _Node, second: _Node, weights: _Weights) -> None:
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
