"""Correct the biases of an int8 network for the rounding of its weights.

Rounded weights change the mean of each output channel, because inputs behind an activation function
have a mean. The change is known: it is the output of the rounding errors for the mean of the inputs
(Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
section 4.2). The bias takes it back at no cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from lowrank.onnx_files.weighted_nodes import WeightedNode, Weights, channel_means

_INTEGERS = np.iinfo(np.int32)


@dataclass(frozen=True)
class _Mean:
    """Mean inputs of a node by channel, and its response to them in float."""

    inputs: np.ndarray
    response: np.ndarray


class BiasCorrection:
    """Correction for all int8 versions of one network.

    Parameters
    ----------
    means
        Mean inputs of the nodes, by name of the node.
    """

    def __init__(self, means: Mapping[str, _Mean]) -> None:
        self._means = means

    @classmethod
    def prepared(
        cls, model: onnx.ModelProto, batches: Iterable[Mapping[str, np.ndarray]], label: str
    ) -> BiasCorrection:
        """Return the correction for a network in float, and add the biases that it needs.

        Parameters
        ----------
        model
            The network, whose nodes have names. Convolutions and products of the operator `Gemm`
            that have no bias get one of zeros.
        batches
            Inputs by name; some tens of samples are enough.
        label
            Name of the network for messages.

        Raises
        ------
        UserError
            If ONNX Runtime cannot run the network on the batches.
        """
        weights = Weights(model.graph)
        nodes = [
            node
            for node in map(WeightedNode.of, model.graph.node)
            if node is not None and node.takes_bias and node.node.input[1] in weights
        ]
        for node in nodes:
            channels = weights.shape(node.node.input[1])[node.outputs]
            if len(node.node.input) < 3 or not node.node.input[2]:
                weights.bias(node.node, channels)
        means = channel_means(
            model, {node.node.input[0]: node.channels for node in nodes}, batches, label
        )
        by_name = {}
        for node in nodes:
            inputs = means.get(node.node.input[0])
            if inputs is not None:
                response = node.response(weights[node.node.input[1]], inputs)
                by_name[node.node.name] = _Mean(inputs, response)
        return cls(by_name)

    def apply(self, model: onnx.ModelProto) -> int:
        """Correct the biases of an int8 network in the QDQ format; return their number."""
        graph = model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        readers = Counter(name for node in graph.node for name in node.input)
        dequantized = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in constants
        }
        corrected = 0
        for node in graph.node:
            mean, weighted = self._means.get(node.name), WeightedNode.of(node)
            if mean is None or weighted is None or len(node.input) < 3:
                continue
            weight, bias = (dequantized.get(name) for name in node.input[1:3])
            if weight is None or bias is None:
                continue
            if readers[bias.output[0]] > 1 or readers[bias.input[0]] > 1:
                # Another node reads the same bias.
                continue
            stored, scale = (constants[name] for name in bias.input[:2])
            if list(stored.dims) != [len(mean.response)]:
                # The bias of a Gemm may be a single number.
                continue
            rounded = weighted.response(_dequantized(weight, constants), mean.inputs)
            change, step = mean.response - rounded, _array(scale)
            steps = np.divide(change, step, out=np.zeros_like(change), where=step > 0)
            values = np.clip(_array(stored) + np.rint(steps), _INTEGERS.min, _INTEGERS.max)
            stored.CopyFrom(numpy_helper.from_array(values.astype(np.int32), stored.name))
            corrected += 1
        return corrected


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _dequantized(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Return the values of a weight that is stored in 8 bits, symmetrically."""
    integers, scale = (_array(constants[name]) for name in node.input[:2])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.ndim and scale.size > 1:
        scale = scale.reshape([-1 if n == axis else 1 for n in range(integers.ndim)])
    values: np.ndarray = integers * scale
    return values
