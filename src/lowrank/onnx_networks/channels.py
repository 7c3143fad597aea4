"""Follow the output channels of layers in an ONNX graph to the layers that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx

from lowrank.onnx_networks.constants import Constants, attributes_of
from lowrank.onnx_networks.model_file import nodes_of

# Operators whose output channel depends on the same channel of their first input only. Their other
# inputs are numbers.
_BY_CHANNEL = frozenset(
    {
        *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid", "Tanh"),
        *("Gelu", "HardSwish", "Mish", "Softplus", "Softsign", "Erf", "Identity", "Dropout"),
        *("Abs", "Neg", "Exp", "Sqrt", "Cast", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("GlobalMaxPool", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "PRelu"),
        "BatchNormalization",
    }
)

# Among these, operators for maps only, (N, C, H, W).
_FOR_MAPS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization"}
)


@dataclass(eq=False)
class Channels:
    """The output channels of a layer, and the nodes that they pass.

    Parameters
    ----------
    layer
        Node of the layer.
    is_map
        Whether the channels are the second axis, as of a convolution; otherwise the last axis.
    count
        Number of channels.
    passed
        Nodes that compute each channel on its own, in the order of the graph.
    readers
        Layers that read the channels.
    is_read_elsewhere
        Whether anything else reads them.
    """

    layer: onnx.NodeProto
    is_map: bool
    count: int
    passed: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    is_read_elsewhere: bool = False

    @property
    def only_reader(self) -> onnx.NodeProto | None:
        """The layer that alone reads the channels, or None."""
        return None if self.is_read_elsewhere or len(self.readers) != 1 else self.readers[0]


def follow_channels(
    graph: onnx.GraphProto, is_layer: Callable[[onnx.NodeProto], bool]
) -> list[Channels]:
    """Return the output channels of each layer, in the order of the graph.

    `is_layer` decides for a convolution or a product with a stored weight whether it is a layer.
    Depthwise convolutions that are none are passed.
    """
    return _Search(graph, is_layer).channels()


def channel_axis(shape: tuple[int, ...], *, is_map: bool) -> int | None:
    """Return the axis of a stored tensor that is aligned with the channels; None if none is."""
    axis = len(shape) - (3 if is_map else 1)
    return axis if axis >= 0 else None


class _Search:
    def __init__(self, graph: onnx.GraphProto, is_layer: Callable[[onnx.NodeProto], bool]) -> None:
        self._graph, self._is_layer = graph, is_layer
        self._constants = Constants(graph)
        self._by_tensor: dict[str, Channels] = {}

    def channels(self) -> list[Channels]:
        """Follow all nodes."""
        layers = []
        for node in self._graph.node:
            if _is_product(node, self._constants) and self._is_layer(node):
                layers.append(self._start(node))
            else:
                self._pass(node)
        for node, is_inner in nodes_of(self._graph):
            if is_inner:
                self._read_elsewhere(node.input)
        self._read_elsewhere([output.name for output in self._graph.output])
        return layers

    def _start(self, node: onnx.NodeProto) -> Channels:
        if (read := self._by_tensor.get(node.input[0])) is not None:
            read.readers.append(node)
        self._read_elsewhere(node.input[1:])
        shape, is_map = self._constants.shape(node.input[1]), node.op_type == "Conv"
        by_output = is_map or bool(attributes_of(node).get("transB", 0))
        channels = Channels(node, is_map, shape[0] if by_output else shape[-1])
        if node.op_type == "ConvTranspose":
            channels.is_read_elsewhere = True
        self._by_tensor[node.output[0]] = channels
        return channels

    def _pass(self, node: onnx.NodeProto) -> None:
        read = {self._by_tensor[name] for name in node.input if name in self._by_tensor}
        if not read:
            return
        (channels, *others) = read
        if not others and self._is_by_channel(node, channels):
            channels.passed.append(node)
            self._by_tensor[node.output[0]] = channels
        else:
            self._read_elsewhere(node.input)

    def _is_by_channel(self, node: onnx.NodeProto, channels: Channels) -> bool:
        if node.domain not in ("", "ai.onnx") or node.input[0] == "":
            return False
        if node.op_type == "Conv":
            return self._is_depthwise(node, channels)
        if node.op_type not in _BY_CHANNEL or (node.op_type in _FOR_MAPS and not channels.is_map):
            return False
        if any(output for output in node.output[1:]):
            return False  # A second output, such as the positions of a maximum.
        others = [name for name in node.input if name and name not in self._by_tensor]
        return all(self._fits(name, node, channels) for name in others)

    def _is_depthwise(self, node: onnx.NodeProto, channels: Channels) -> bool:
        group = attributes_of(node).get("group", 1)
        if node.input[1] not in self._constants or group != channels.count or group == 1:
            return False
        return channels.is_map and self._constants.shape(node.input[1])[:2] == (group, 1)

    def _fits(self, name: str, node: onnx.NodeProto, channels: Channels) -> bool:
        """Return whether a stored tensor has one value, or one for each channel."""
        if name not in self._constants:
            return False
        shape = self._constants.shape(name)
        if node.op_type == "BatchNormalization":
            return shape == (channels.count,)
        axis = channel_axis(shape, is_map=channels.is_map)
        others = [size for index, size in enumerate(shape) if index != axis]
        if any(size != 1 for size in others):
            return False
        return axis is None or shape[axis] in (1, channels.count)

    def _read_elsewhere(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._by_tensor:
                self._by_tensor[name].is_read_elsewhere = True


def _is_product(node: onnx.NodeProto, constants: Constants) -> bool:
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type in ("Conv", "Gemm", "MatMul")
        and node.input[1] in constants
    )
