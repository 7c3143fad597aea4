"""Prepare an ONNX graph for PyTorch, and run the nodes between its layers in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from lowrank.onnx_networks.model_file import fixed_batch, inputs_of
from lowrank.onnx_networks.model_run import ModelRun, zeros

# Nodes whose outputs are not constant although their inputs are.
_RANDOM = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Multinomial", "Bernoulli", "Dropout"),
    }
)

_CONSTANT_FIELDS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}

Values = dict[str, Any]


@dataclass(frozen=True)
class PreparedGraph:
    """A network without nodes that compute constants.

    Parameters
    ----------
    model
        The network: constants are initializers.
    inputs
        Names of its inputs.
    batch
        Size of the batch, if the file fixes it.
    tensors
        The initializers by name.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    batch: int | None
    tensors: dict[str, Tensor]


def prepared(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], label: str
) -> PreparedGraph:
    """Return a network with its constants computed.

    Parameters
    ----------
    model
        The network. It is not changed.
    shapes
        Shape of each input for one sample.
    label
        Name of the network for messages.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    inputs = [copy.deepcopy(entry) for entry in inputs_of(changed)]
    del graph.input[:]
    graph.input.extend(inputs)
    store_constants(graph)
    _fold_constants(changed)
    _plain_reshapes(graph)
    state_shapes(changed, shapes, label)
    tensors = {
        tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING
    }
    names = tuple(entry.name for entry in inputs)
    return PreparedGraph(changed, names, fixed_batch(inputs) or None, tensors)


def store_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers."""
    nodes = []
    for node in graph.node:
        array = _constant(node) if node.op_type == "Constant" else None
        if array is None:
            nodes.append(copy.deepcopy(node))
        else:
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node; None for sparse tensors and texts."""
    for entry in node.attribute:
        if entry.name == "value":
            return numpy_helper.to_array(entry.t)
        if entry.name in _CONSTANT_FIELDS:
            return np.asarray(helper.get_attribute_value(entry), _CONSTANT_FIELDS[entry.name])
    return None


def _fold_constants(model: onnx.ModelProto) -> None:
    """Compute the nodes whose inputs are all stored, and store their outputs."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    folded, others = [], []
    for node in graph.node:
        has_graph = any(entry.type == onnx.AttributeProto.GRAPH for entry in node.attribute)
        is_constant = all(name in known for name in node.input if name)
        if is_constant and not has_graph and node.op_type not in _RANDOM:
            folded.append(node)
            known.update(node.output)
        else:
            others.append(node)
    if not folded:
        return
    read = {name for node in others for name in node.input}
    read |= {output.name for output in graph.output}
    wanted = [name for node in folded for name in node.output if name in read]
    if wanted:
        values = _session(model, folded, [], wanted, graph.initializer).run(wanted, {})
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in zip(wanted, values, strict=True)
        )
    kept = [copy.deepcopy(node) for node in others]
    del graph.node[:]
    graph.node.extend(kept)


def _plain_reshapes(graph: onnx.GraphProto) -> None:
    """Remove `allowzero`, which exporters set without need and converters do not know.

    It only matters for a shape with a zero, that is for an empty tensor.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = stored.get(node.input[1])
            has_zero = shape is not None and not numpy_helper.to_array(shape).all()
            for entry in [entry for entry in node.attribute if entry.name == "allowzero"]:
                if not (entry.i and has_zero):
                    node.attribute.remove(entry)


def state_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], label: str) -> None:
    """State the types and shapes of inner tensors for one sample, which some converters need.

    They come from a run, because shape inference does not know all operators and dynamic sizes.
    """
    names = [name for node in model.graph.node for name in node.output if name]
    values = ModelRun(model, label, inner=names)(zeros(model, shapes))
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape
        )
        for name in names
        if isinstance(values[name], np.ndarray)
    )


class Segment:
    """Nodes that run in ONNX Runtime on the CPU, without gradients.

    Parameters
    ----------
    model
        The network that the nodes belong to.
    nodes
        The nodes, in an order in which they can run.
    outputs
        Names of the tensors that other nodes read.
    """

    module = None

    def __init__(
        self, model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]
    ) -> None:
        self._model, self._nodes, self._outputs = model, nodes, list(outputs)
        made = {name for node in nodes for name in node.output}
        stored = {tensor.name for tensor in model.graph.initializer}
        read = dict.fromkeys(name for node in nodes for name in _read_by_node(node))
        self.reads = tuple(name for name in read if name and name not in made | stored)
        needed = {*read}
        self._stored = [t for t in model.graph.initializer if t.name in needed]
        self._loaded: onnxruntime.InferenceSession | None = None

    def __call__(self, values: Values) -> None:
        """Compute the outputs and add them to `values`."""
        device = next((values[name].device for name in self.reads), torch.device("cpu"))
        feed = {name: values[name].detach().cpu().contiguous().numpy() for name in self.reads}
        if self._loaded is None:
            # The types of inner tensors are known when they are first computed.
            inputs = [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), None
                )
                for name, array in feed.items()
            ]
            self._loaded = _session(self._model, self._nodes, inputs, self._outputs, self._stored)
        results = self._loaded.run(self._outputs, feed)
        for name, result in zip(self._outputs, results, strict=True):
            values[name] = torch.from_numpy(np.asarray(result)).to(device)

    def __deepcopy__(self, memo: Any) -> Segment:
        # It has no weights of layers, so copies of a network can share it.
        return self


def in_runtime(
    graph: PreparedGraph, layers: Mapping[str, str], added: Collection[str]
) -> list[str | Segment]:
    """Return the layers, by the outputs of their nodes, and the nodes between them as segments.

    Parameters
    ----------
    graph
        The network.
    layers
        Input of each layer, by the output of its node.
    added
        Outputs of nodes that add the biases of layers; they are left out.
    """
    nodes = [node for node in graph.model.graph.node if node.output[0] not in added]
    needed = {output.name for output in graph.model.graph.output} | {*layers.values()}
    groups: list[str | list[onnx.NodeProto]] = []
    for node in nodes:
        if node.output[0] in layers:
            groups.append(node.output[0])
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(node)
        else:
            groups.append([node])
    steps: list[str | Segment] = []
    for group in groups:
        if isinstance(group, str):
            steps.append(group)
            continue
        inside = {id(node) for node in group}
        elsewhere = {
            name for node in nodes if id(node) not in inside for name in _read_by_node(node)
        }
        outputs = [name for node in group for name in node.output if name in elsewhere | needed]
        if outputs:
            steps.append(Segment(graph.model, group, outputs))
    return steps


def _read_by_node(node: onnx.NodeProto) -> list[str]:
    """Return the tensors that a node reads, also those that its subgraphs read from outside."""
    names = list(node.input)
    for entry in node.attribute:
        for subgraph in [entry.g, *entry.graphs] if entry.type in (5, 10) else []:
            inner = {name for other in subgraph.node for name in other.output}
            inner |= {item.name for item in (*subgraph.initializer, *subgraph.input)}
            read = [name for other in subgraph.node for name in _read_by_node(other)]
            read += [output.name for output in subgraph.output]
            names += [name for name in read if name not in inner]
    return names


def _session(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    stored: Sequence[onnx.TensorProto],
) -> onnxruntime.InferenceSession:
    """Load some nodes of a network in ONNX Runtime."""
    part = helper.make_model(
        helper.make_graph(
            list(nodes),
            "part",
            list(inputs),
            # ONNX Runtime infers the type of an output that states none.
            [onnx.ValueInfoProto(name=name) for name in outputs],
            list(stored),
        ),
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    part.ir_version = max(model.ir_version, 4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
