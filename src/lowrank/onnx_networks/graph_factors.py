"""Replace layers of an ONNX graph by factors, without touching anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank.core.layers import PlainLayer
from lowrank.onnx_networks.constants import Constants, attributes_of
from lowrank.onnx_networks.graph_layers import Site
from lowrank.onnx_networks.model_file import nodes_of

# Files of an older version list stored tensors among the inputs.
_LISTS_TENSORS_AS_INPUTS = 4

# Nodes in front of a layer that are removed with it if nothing else reads their output.
_REMOVABLE = ("Constant", "Identity", "Flatten", "Reshape")


def put_factors(
    model: onnx.ModelProto,
    site: Site,
    sequence: Sequence[PlainLayer],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Replace one layer by a sequence of plain layers, in place.

    The last plain layer writes the same tensor as the layer, so other nodes stay as they are.
    Stored tensors that no node reads any more are removed.

    Parameters
    ----------
    model
        The network.
    site
        The place of the layer, from `find_sites`.
    sequence
        The plain layers.
    tensors
        Their kernels and the bias of the last one: `0.weight`, `1.weight`, ..., `<last>.bias`.
    """
    graph = model.graph
    node = onnx.NodeProto()
    node.CopyFrom(next(node for node in graph.node if site.output in node.output))
    writer = _Writer(model, site, node)
    if site.add is not None:
        tensors = writer.without_added_bias(tensors, f"{len(sequence) - 1}.bias")
    if site.operator == "Conv":
        nodes = writer.convolutions(sequence, tensors)
    elif site.layer.kernel == (1, 1) or sequence[0].kernel == site.layer.kernel:
        nodes = writer.products(sequence, tensors)
    else:
        nodes = writer.convolutions_on_map(sequence, tensors)
    others = [*graph.node]
    position = others.index(node)
    del graph.node[:]
    graph.node.extend([*others[:position], *nodes, *others[position + 1 :]])
    _remove_unread(graph, node.input)


class _Writer:
    """Writes the nodes and stored tensors that replace one layer."""

    def __init__(self, model: onnx.ModelProto, site: Site, node: onnx.NodeProto) -> None:
        self._model, self._site, self._node = model, site, node
        graph = model.graph
        self._type = helper.tensor_dtype_to_np_dtype(_data_type(graph, site.weight))
        self._taken = {name for n, _ in nodes_of(graph) for name in (*n.input, *n.output)}
        self._taken |= {entry.name for entry in (*graph.initializer, *graph.input)}
        self._taken_by_nodes = {n.name for n, _ in nodes_of(graph)} - {node.name}

    def convolutions(
        self, sequence: Sequence[PlainLayer], tensors: Mapping[str, np.ndarray]
    ) -> list[onnx.NodeProto]:
        """Return a Conv for each plain layer, over as many axes as the layer."""
        axes = len(self._site.pads)
        automatic = attributes_of(self._node).get("auto_pad", b"NOTSET").decode()
        nodes, current = [], self._node.input[0]
        for index, plain in enumerate(sequence):
            is_last = index == len(sequence) - 1
            # With automatic padding, the size of the padding may depend on the input.
            padding: dict[str, Any] = (
                {"auto_pad": automatic}
                if automatic.startswith("SAME")
                else {"pads": self._pads(sequence, index)}
            )
            nodes.append(
                helper.make_node(
                    "Conv",
                    [current, *self._stored(index, plain, tensors, axes)],
                    [self._site.output if is_last else self._free(f"{self._site.output}.{index}")],
                    name=self._node_name(str(index)),
                    kernel_shape=plain.kernel[:axes],
                    strides=plain.stride[:axes],
                    dilations=plain.dilation[:axes],
                    group=plain.groups,
                    **padding,
                )
            )
            current = nodes[-1].output[0]
        return nodes

    def products(
        self, sequence: Sequence[PlainLayer], tensors: Mapping[str, np.ndarray]
    ) -> list[onnx.NodeProto]:
        """Return a product for each plain layer, of the operator of the layer."""
        nodes, current = [], self._node.input[0]
        for index, plain in enumerate(sequence):
            is_last = index == len(sequence) - 1
            weight = tensors[f"{index}.weight"].reshape(plain.out_channels, -1)
            names = [self._store(f"{index}.weight", weight.T)]
            bias = tensors.get(f"{index}.bias")
            if bias is not None and self._site.operator == "Gemm":
                names.append(self._store(f"{index}.bias", bias))
            output = self._site.output if is_last else self._free(f"{self._site.output}.{index}")
            name = self._node_name(str(index))
            nodes.append(
                helper.make_node(self._site.operator, [current, *names], [output], name=name)
            )
            current = output
        bias = tensors.get(f"{len(sequence) - 1}.bias")
        if self._site.operator == "MatMul" and bias is not None:
            product = nodes[-1]
            product.output[0] = self._free(f"{self._site.output}.{len(sequence) - 1}")
            nodes.append(
                helper.make_node(
                    "Add",
                    [product.output[0], self._store(f"{len(sequence) - 1}.bias", bias)],
                    [self._site.output],
                    name=self._node_name("bias"),
                )
            )
        return nodes

    def convolutions_on_map(
        self, sequence: Sequence[PlainLayer], tensors: Mapping[str, np.ndarray]
    ) -> list[onnx.NodeProto]:
        """Return convolutions on the map before it is flattened, and a flattening."""
        nodes, current = [], self._site.input
        for index, plain in enumerate(sequence):
            nodes.append(
                helper.make_node(
                    "Conv",
                    [current, *self._stored(index, plain, tensors, 2)],
                    [self._free(f"{self._site.output}.{index}")],
                    name=self._node_name(str(index)),
                    kernel_shape=plain.kernel,
                    group=plain.groups,
                )
            )
            current = nodes[-1].output[0]
        name = self._node_name("flatten")
        flatten = helper.make_node("Flatten", [current], [self._site.output], name=name, axis=1)
        return [*nodes, flatten]

    def without_added_bias(
        self, tensors: Mapping[str, np.ndarray], key: str
    ) -> dict[str, np.ndarray]:
        """Give the bias to the node that adds it, and return the other tensors."""
        graph = self._model.graph
        add = next(node for node in graph.node if self._site.add in node.output)
        position = list(add.input).index(str(self._site.bias))
        before = add.input[position]
        add.input[position] = self._store(key, tensors[key])
        _remove_unread(graph, [before])
        return {name: tensor for name, tensor in tensors.items() if name != key}

    def _pads(self, sequence: Sequence[PlainLayer], index: int) -> list[int]:
        """Return the pads of one plain layer: along each axis, one of them has the layer's pads."""
        before, after = [], []
        for axis, (first, last) in enumerate(self._site.pads):
            pads_here = index == _padding_layer(sequence, axis)
            before.append(first if pads_here else 0)
            after.append(last if pads_here else 0)
        return [*before, *after]

    def _stored(
        self, index: int, plain: PlainLayer, tensors: Mapping[str, np.ndarray], axes: int
    ) -> list[str]:
        """Store the kernel and the bias of a convolution over `axes` axes; return their names."""
        kernel = tensors[f"{index}.weight"].reshape(plain.weight_shape)
        names = [self._store(f"{index}.weight", kernel.reshape(kernel.shape[: 2 + axes]))]
        if (bias := tensors.get(f"{index}.bias")) is not None:
            names.append(self._store(f"{index}.bias", bias))
        return names

    def _store(self, name: str, array: np.ndarray) -> str:
        """Store a tensor in the type of the layer's weight, and return its name."""
        name = self._free(f"{self._site.layer.name}.{name}")
        graph = self._model.graph
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, self._type), name)
        graph.initializer.append(tensor)
        if self._model.ir_version < _LISTS_TENSORS_AS_INPUTS:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
        return name

    def _free(self, name: str) -> str:
        """Return the name, changed if another tensor has it, and take it."""
        return _unique(name, self._taken)

    def _node_name(self, part: str) -> str:
        """Return a name for a node of the replacement that no other node has."""
        return _unique(f"{self._site.layer.name}.{part}", self._taken_by_nodes)


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, with underscores if it is taken, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _padding_layer(sequence: Sequence[PlainLayer], axis: int) -> int:
    """Return the number of the plain layer that pads along an axis.

    It is the one with a window along this axis, else the one with a padding, else the first.
    """
    for number, plain in enumerate(sequence):
        if plain.kernel[axis] > 1:
            return number
    return next((n for n, plain in enumerate(sequence) if plain.padding[axis]), 0)


def _data_type(graph: onnx.GraphProto, name: str) -> int:
    array = Constants(graph).array(name)
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _remove_unread(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Remove stored tensors that no node reads any more, and the nodes that only made them."""
    pending = [name for name in names if name]
    while pending:
        name = pending.pop()
        read = any(name in node.input for node, _ in nodes_of(graph))
        if read or any(output.name == name for output in graph.output):
            continue
        for tensor in [tensor for tensor in graph.initializer if tensor.name == name]:
            graph.initializer.remove(tensor)
            # Files of an older version list it among the inputs, too.
            for entry in [entry for entry in graph.input if entry.name == name]:
                graph.input.remove(entry)
        for node in [node for node in graph.node if name in node.output]:
            if node.op_type in _REMOVABLE:
                pending += node.input
                graph.node.remove(node)
