"""Divide an ONNX network at a layer: the layer, and everything that depends on its output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from lowrank.onnx_networks.graph_layers import Site

# First version of the format in which stored tensors need not be listed among the inputs.
_STORED_ALONE = 4


@dataclass(frozen=True)
class TensorForm:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> TensorForm:
        """Return the form of an array."""
        return cls(array.shape, array.dtype)


# The form of each tensor in one batch.
Forms = Mapping[str, TensorForm]


class GraphParts:
    """The division of one network at its layers.

    Parameters
    ----------
    model
        The network. It is not changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        graph = model.graph
        self._reads = [_reads(node) for node in graph.node]
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        # Tensors that depend on no input are part of each network that reads them.
        self._constant = set(self._tensors)
        self._outputs = {output.name: output for output in graph.output}
        for node, reads in zip(graph.node, self._reads, strict=True):
            if reads <= self._constant:
                self._constant.update(node.output)

    def reads_at(self, site: Site) -> tuple[str, ...]:
        """Return the tensors of the rest of the network that the parts at a layer take."""
        behind = self._missing(self._behind(site), {end_of(site)})
        return tuple(dict.fromkeys((*self._reads_of_layer(site), *behind)))

    def layer(self, site: Site, batches: Sequence[Forms]) -> onnx.ModelProto:
        """Return the network of a layer alone, which `put_factors` can change.

        `batches` has the forms of the tensors that it takes, for each batch. Sizes that are the
        same in all batches are fixed, because ONNX Runtime then finds faster kernels.
        """
        output = onnx.ValueInfoProto(name=end_of(site))
        return self._part(self._nodes_of_layer(site), self._reads_of_layer(site), [output], batches)

    def behind(self, site: Site, batches: Sequence[Forms]) -> onnx.ModelProto | None:
        """Return the network of everything that depends on the output of a layer.

        Its outputs are the outputs of the whole network that do so. None if the output of the layer
        is the only one. `batches` as for `layer`.
        """
        behind, end = self._behind(site), end_of(site)
        made = {name for index in behind for name in self._model.graph.node[index].output}
        results = [output for name, output in self._outputs.items() if name in made]
        if not results:
            return None
        return self._part(behind, [end, *self._missing(behind, {end})], results, batches)

    def _reads_of_layer(self, site: Site) -> tuple[str, ...]:
        reads = self._missing(self._nodes_of_layer(site), set())
        # Factors on a map read it in front of its flattening.
        return tuple(dict.fromkeys((*reads, site.input)))

    def _nodes_of_layer(self, site: Site) -> list[int]:
        wanted = {site.output, end_of(site)}
        return [i for i, node in enumerate(self._model.graph.node) if wanted & set(node.output)]

    def _behind(self, site: Site) -> list[int]:
        """Return the numbers of the nodes that depend on a layer and that an output needs."""
        nodes, changed, dependent = self._model.graph.node, {end_of(site)}, []
        for index, reads in enumerate(self._reads):
            if reads & changed:
                dependent.append(index)
                changed.update(nodes[index].output)
        needed, kept = set(self._outputs), []
        for index in reversed(dependent):
            if needed & set(nodes[index].output):
                needed |= self._reads[index]
                kept.append(index)
        return kept[::-1]

    def _missing(self, indices: Iterable[int], known: set[str]) -> tuple[str, ...]:
        """Return the tensors that nodes read, but that are neither made by them nor constant."""
        known, missing = set(known), dict[str, None]()
        for index in indices:
            missing |= dict.fromkeys(sorted(self._reads[index] - known - self._constant))
            known.update(self._model.graph.node[index].output)
        return tuple(missing)

    def _part(
        self,
        indices: Sequence[int],
        inputs: Sequence[str],
        outputs: Sequence[onnx.ValueInfoProto],
        batches: Sequence[Forms],
    ) -> onnx.ModelProto:
        """Return a network of some nodes and the constants that they read."""
        nodes = self._model.graph.node
        needed = {name for index in indices for name in self._reads[index]}
        constants = []
        for index in reversed(range(len(nodes))):
            made = needed.intersection(nodes[index].output)
            if made and made <= self._constant:
                needed |= self._reads[index]
                constants.append(index)
        part = onnx.ModelProto(ir_version=max(self._model.ir_version, _STORED_ALONE))
        part.opset_import.extend(self._model.opset_import)
        part.functions.extend(self._model.functions)
        part.graph.name = self._model.graph.name
        part.graph.node.extend(nodes[index] for index in (*reversed(constants), *indices))
        part.graph.initializer.extend(
            tensor for name, tensor in self._tensors.items() if name in needed
        )
        part.graph.input.extend(
            _declared(name, [batch[name] for batch in batches]) for name in inputs
        )
        part.graph.output.extend(outputs)
        return part


def _declared(name: str, forms: Sequence[TensorForm]) -> onnx.ValueInfoProto:
    """Return the declaration of an input that takes tensors of these forms."""
    sizes = [set(lengths) for lengths in zip(*(form.shape for form in forms), strict=True)]
    shape = [lengths.pop() if len(lengths) == 1 else None for lengths in sizes]
    dtype = helper.np_dtype_to_tensor_dtype(forms[0].dtype)
    return helper.make_tensor_value_info(name, dtype, shape)


def end_of(site: Site) -> str:
    """Return the tensor that holds the output of a layer with its bias."""
    return site.output if site.add is None else site.add


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, also within its subgraphs."""
    reads = set(node.input)
    for attribute in node.attribute:
        subgraphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
        for graph in (*subgraphs, *attribute.graphs):
            # An output of a branch can be a tensor of the whole network.
            inner = {output.name for output in graph.output}.union(*map(_reads, graph.node))
            made = {entry.name for entry in (*graph.input, *graph.initializer)}
            reads |= inner - made.union(*(inside.output for inside in graph.node))
    return reads - {""}
