"""Remove the channels of an ONNX graph that a selection of channels leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank.onnx_networks.branch_removal import remove_constant_branches
from lowrank.onnx_networks.channels import Channels, channel_axis, follow_channels
from lowrank.onnx_networks.constants import Constants, attributes_of
from lowrank.onnx_networks.model_file import nodes_of


def remove_unread_channels(model: onnx.ModelProto) -> None:
    """Remove output channels of layers that a selection leaves out and that nothing else reads.

    A selection is a 1 x 1 convolution, or a product, that copies some channels: in each row, its
    weight has one 1 and otherwise zeros. The layer before it, and depthwise convolutions and stored
    values for each channel between the two, keep only the copied channels. The selection is
    removed. One whose channels are also read elsewhere stays. Branches that compute a constant are
    removed, too (`remove_constant_branches`). The model is changed.
    """
    remove_constant_branches(model)
    graph = model.graph
    constants = Constants(graph)
    if not any(_selected(node, constants) is not None for node in graph.node):
        return

    def is_layer(node: onnx.NodeProto) -> bool:
        # Depthwise convolutions lose channels with the layer before them.
        return not (node.op_type == "Conv" and attributes_of(node).get("group", 1) > 1)

    for channels in follow_channels(graph, is_layer):
        reader = channels.only_reader
        if reader is None:
            continue
        selected = _selected(reader, constants)
        if selected is not None and _can_shrink(channels):
            _Removal(model, channels, selected).apply(reader)


def _can_shrink(channels: Channels) -> bool:
    return attributes_of(channels.layer).get("group", 1) == 1


def _selected(node: onnx.NodeProto, constants: Constants) -> np.ndarray | None:
    """Return the channels that a selection copies, in its order; None for any other node."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
        return None
    if len(node.input) > 2 and node.input[2]:
        return None
    shape, attributes = constants.shape(node.input[1]), attributes_of(node)
    if node.op_type == "Conv":
        ones = {"strides": 1, "pads": 0, "dilations": 1}
        is_plain = attributes.get("group", 1) == 1 and all(
            set(attributes.get(name, ())) <= {value} for name, value in ones.items()
        )
        if not is_plain or any(size != 1 for size in shape[2:]):
            return None
    elif attributes.get("alpha", 1.0) != 1.0 or attributes.get("transA", 0):
        return None
    weight = constants.array(node.input[1])
    matrix = weight.reshape(shape[0], -1)
    if node.op_type != "Conv" and not attributes.get("transB", 0):
        matrix = matrix.T
    copied = matrix.argmax(1)
    expected = np.zeros(matrix.shape, matrix.dtype)
    expected[np.arange(len(matrix)), copied] = 1
    is_selection = len(np.unique(copied)) == len(copied) and np.array_equal(matrix, expected)
    return copied if is_selection else None


class _Removal:
    """The removal of all but some output channels of one layer."""

    def __init__(self, model: onnx.ModelProto, channels: Channels, selected: np.ndarray) -> None:
        self._graph, self._channels, self._selected = model.graph, channels, selected
        self._constants = Constants(self._graph)

    def apply(self, selection: onnx.NodeProto) -> None:
        """Change the layer and the nodes up to the selection, and remove the selection."""
        channels = self._channels
        layer = channels.layer
        by_output = channels.is_map or bool(attributes_of(layer).get("transB", 0))
        self._shorten(layer, 1, axis=0 if by_output else 1)
        if len(layer.input) > 2 and layer.input[2]:
            self._shorten(layer, 2, axis=-1)
        for node in channels.passed:
            self._shorten_constants(node)
        changed = {layer.output[0], *(node.output[0] for node in channels.passed)}
        self._forget_shapes(changed | {selection.output[0]})
        for node, _ in nodes_of(self._graph):
            for index, name in enumerate(node.input):
                if name == selection.output[0]:
                    node.input[index] = selection.input[0]
        weight = selection.input[1]
        self._graph.node.remove(selection)
        self._remove_if_unread(weight)

    def _shorten_constants(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Conv":
            for index in range(1, len(node.input)):
                self._shorten(node, index, axis=0)
            group = next(entry for entry in node.attribute if entry.name == "group")
            group.CopyFrom(helper.make_attribute("group", len(self._selected)))
            return
        for index, name in enumerate(node.input):
            if name not in self._constants:
                continue
            shape = self._constants.shape(name)
            axis = channel_axis(shape, is_map=self._channels.is_map)
            if node.op_type == "BatchNormalization":
                axis = 0
            if axis is not None and shape[axis] == self._channels.count > 1:
                self._shorten(node, index, axis=axis)

    def _shorten(self, node: onnx.NodeProto, index: int, *, axis: int) -> None:
        """Keep the selected entries of one stored input of a node along an axis."""
        name = node.input[index]
        array = self._constants.array(name)
        if array.shape[axis] != self._channels.count:
            return  # One value for all channels.
        shorter = np.ascontiguousarray(array.take(self._selected, axis))
        new_name = self._free(f"{name}_selected")
        self._graph.initializer.append(numpy_helper.from_array(shorter, new_name))
        if any(entry.name == name for entry in self._graph.input):
            # Files of an older version list stored tensors among the inputs.
            data_type = helper.np_dtype_to_tensor_dtype(shorter.dtype)
            self._graph.input.append(
                helper.make_tensor_value_info(new_name, data_type, shorter.shape)
            )
        node.input[index] = new_name
        self._remove_if_unread(name)

    def _free(self, name: str) -> str:
        """Return a name that no tensor has."""
        taken = {entry.name for entry in (*self._graph.initializer, *self._graph.input)}
        taken |= {name for node, _ in nodes_of(self._graph) for name in node.output}
        while name in taken:
            name += "_"
        return name

    def _forget_shapes(self, names: set[str]) -> None:
        """Remove the recorded shapes of tensors that have fewer channels now."""
        stay = [entry for entry in self._graph.value_info if entry.name not in names]
        del self._graph.value_info[:]
        self._graph.value_info.extend(stay)

    def _remove_if_unread(self, name: str) -> None:
        if any(name in node.input for node, _ in nodes_of(self._graph)):
            return
        if any(output.name == name for output in self._graph.output):
            return
        for entries in (self._graph.initializer, self._graph.input):
            _remove_named(entries, name)


def _remove_named(entries: Sequence[onnx.TensorProto | onnx.ValueInfoProto], name: str) -> None:
    for entry in [entry for entry in entries if entry.name == name]:
        entries.remove(entry)  # type: ignore[attr-defined]  # A repeated field of protobuf.
