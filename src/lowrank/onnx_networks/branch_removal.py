"""Remove the branches of an ONNX graph that compute a constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

from lowrank.onnx_networks.constants import Constants
from lowrank.onnx_networks.model_file import nodes_of


def remove_constant_branches(model: onnx.ModelProto) -> None:
    """Remove convolutions whose kernel is zero, if their output is only added to another map.

    The bias is added instead. An addition that broadcasts the other map stays, because the output
    gives the sum its shape. Nodes and stored tensors that nothing reads any more are removed. The
    model is changed.
    """
    graph = model.graph
    constants = Constants(graph)
    taken = {entry.name for entry in graph.initializer}
    removed = False
    for node in list(graph.node):
        addition = _addition_of(graph, node, constants)
        if addition is None or not _terms_have_one_shape(model, addition):
            continue
        bias = _bias_of(node, constants)
        name = f"{node.output[0]}_constant"
        while name in taken:
            name += "_"
        taken.add(name)
        graph.initializer.append(numpy_helper.from_array(bias, name))
        index = list(addition.input).index(node.output[0])
        addition.input[index] = name
        graph.node.remove(node)
        removed = True
    if removed:
        _remove_unread(graph)


def added_outputs(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that are only read by an addition of two computed tensors.

    Of each addition, the first such term is returned. The other one gives the sum its shape.
    """
    stored = Constants(graph)
    added = set()
    for node in graph.node:
        if node.op_type != "Add" or any(name in stored for name in node.input):
            continue
        terms = [name for name in node.input if _readers(graph, name) == [node]]
        added.update(terms[:1])
    return added


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto | None]:
    """Return the nodes that read a tensor; None stands for the outputs of the graph."""
    readers: list[onnx.NodeProto | None] = [
        node for node, _ in nodes_of(graph) for entry in node.input if entry == name
    ]
    return readers + [None for entry in graph.output if entry.name == name]


def _addition_of(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Constants
) -> onnx.NodeProto | None:
    """Return the addition that alone reads a convolution without effect; None for other nodes."""
    if node.op_type != "Conv":
        return None
    if any(name and name not in constants for name in node.input[1:]):
        return None
    if constants.array(node.input[1]).any():
        return None
    (reader, *others) = _readers(graph, node.output[0]) or [None]
    if reader is None or others or reader.op_type != "Add":
        return None
    stored = Constants(graph)
    return None if any(name in stored for name in reader.input) else reader


def _terms_have_one_shape(model: onnx.ModelProto, addition: onnx.NodeProto) -> bool:
    """Return whether the terms of an addition are known to have the same shape."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except ValueError:  # Larger than protocol buffers can be.
        return False
    shapes = {
        entry.name: [(axis.dim_value, axis.dim_param) for axis in entry.type.tensor_type.shape.dim]
        for entry in (*graph.value_info, *graph.input)
    }
    first, second = (shapes.get(name) for name in addition.input)
    return first is not None and first == second and (0, "") not in first


def _bias_of(node: onnx.NodeProto, constants: Constants) -> np.ndarray:
    """Return the bias in the shape of a map of one pixel, (T, 1, 1)."""
    weight = constants.array(node.input[1])
    bias = np.zeros(len(weight), weight.dtype)
    if len(node.input) > 2 and node.input[2]:
        bias = constants.array(node.input[2])
    return np.ascontiguousarray(bias.reshape(-1, *(1,) * (weight.ndim - 2)))


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes and stored tensors that do not contribute to the outputs."""
    needed = {entry.name for entry in graph.output}
    inner = {name for node, is_inner in nodes_of(graph) if is_inner for name in node.input}
    stay = []
    for node in reversed(graph.node):
        if needed.intersection(node.output) or inner.intersection(node.output):
            needed.update(node.input)
            stay.append(node)
    del graph.node[:]
    graph.node.extend(reversed(stay))
    needed |= inner
    for entry in [entry for entry in graph.initializer if entry.name not in needed]:
        graph.initializer.remove(entry)
        for listed in [listed for listed in graph.input if listed.name == entry.name]:
            graph.input.remove(listed)
    names = needed | {name for node in graph.node for name in node.output}
    for value in [value for value in graph.value_info if value.name not in names]:
        graph.value_info.remove(value)
