"""Nodes of an ONNX graph with constant weights, and the means of their channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank.core.tensors import length
from lowrank.onnx_networks.model_run import ModelRun, only_outputs

# Number of samples from which means are taken.
_SAMPLES = 64


@dataclass(frozen=True)
class WeightedNode:
    """A node with a constant weight.

    Parameters
    ----------
    node
        The node.
    outputs, inputs
        Axis of the weight with the output channels, and with the input channels of one group.
    channels
        Axis of its input and of its output with the channels.
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
    def of(cls, node: onnx.NodeProto) -> WeightedNode | None:
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

    def response(self, weight: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Return the outputs (channels,) for constant input channels, without padding and bias.

        Parameters
        ----------
        weight
            The weight of the node.
        means
            Value of each input channel.
        """
        by_axis = np.moveaxis(weight, (self.outputs, self.inputs), (0, 1))
        by_input = by_axis.reshape(*by_axis.shape[:2], -1).sum(2)
        of_groups = by_input.reshape(self.groups, -1, by_input.shape[1])
        response: np.ndarray = (of_groups @ means.reshape(self.groups, -1, 1)).ravel()
        return response


class Weights:
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


def channel_means(
    model: onnx.ModelProto,
    axes: Mapping[str, int],
    batches: Iterable[Mapping[str, np.ndarray]],
    label: str,
) -> dict[str, np.ndarray]:
    """Return the mean of each channel of some tensors, by name.

    Parameters
    ----------
    model
        The network. It is not changed.
    axes
        Axis with the channels, by name of the tensor. Inputs of the network are possible.
    batches
        Inputs of the network by name. The first batches with 64 samples are used.
    label
        Name of the network for messages.

    Raises
    ------
    UserError
        If ONNX Runtime cannot run the network on the batches.
    """
    if not axes:
        return {}
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in axes if name not in inputs]
    run = ModelRun(only_outputs(model, inner), label) if inner else None
    sums: dict[str, np.ndarray] = {}
    count = samples = 0
    for batch in batches:
        values = {**batch, **(run(batch) if run else {})}
        for name, axis in axes.items():
            by_channel = np.moveaxis(values[name], axis, 0)
            means = by_channel.reshape(len(by_channel), -1).mean(1, np.float64)
            sums[name] = sums[name] + means if name in sums else means
        count, samples = count + 1, samples + length(batch)
        if samples >= _SAMPLES:
            break
    return {name: total / count for name, total in sums.items()}
