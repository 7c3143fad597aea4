"""Turn the nodes of an ONNX graph into modules of PyTorch with the library onnx2torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import onnx
from onnx import helper
from torch import Tensor, nn

from lowrank.onnx_networks.graph_steps import PreparedGraph, Values
from lowrank.onnx_networks.model_file import opset_of

# Versions of the operator set in which operators changed, the newest first.
_VERSIONS = (21, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 2, 1)


class Operation:
    """A node as a module of PyTorch.

    Parameters
    ----------
    module
        The module.
    reads
        Names of its arguments; an empty name is an argument that is left out.
    outputs
        Names of its results.
    """

    def __init__(self, module: nn.Module, reads: Sequence[str], outputs: Sequence[str]) -> None:
        self.module = module.eval().requires_grad_(False)
        self._arguments, self._outputs = tuple(reads), tuple(outputs)
        self.reads = tuple(name for name in reads if name)

    def __call__(self, values: Values) -> None:
        """Compute the results and add them to `values`."""
        results = self.module(*(values[name] if name else None for name in self._arguments))
        if len(self._outputs) == 1:
            results = (results,)
        values.update(zip(self._outputs, results, strict=False))


def converted(
    graph: PreparedGraph, layers: Collection[str], added: Collection[str]
) -> tuple[list[str | Operation], list[str]]:
    """Return the nodes as operations of PyTorch, and the operators that cannot be converted.

    Parameters
    ----------
    graph
        The network.
    layers
        Outputs of the nodes that are layers. They stand for themselves in the result.
    added
        Outputs of nodes that add the biases of layers; they are left out.
    """
    try:
        from onnx2torch.node_converters import get_converter
        from onnx2torch.onnx_graph import OnnxGraph
        from onnx2torch.onnx_node import OnnxNode
    except ModuleNotFoundError as error:
        if error.name != "onnx2torch":
            raise
        return [], ["all, because the package `onnx2torch` is not installed"]
    # Its converter of Slice uses an index that PyTorch will refuse one day. A wrong result would be
    # noticed, because the outputs are compared with those of ONNX Runtime.
    warnings.filterwarnings("ignore", "Using a non-tuple sequence", module="onnx2torch")
    model = graph.model
    onnx_graph = OnnxGraph(model.graph)
    steps: list[str | Operation] = []
    missing: dict[str, None] = {}
    for number, node in enumerate(model.graph.node):
        if node.output[0] in layers:
            steps.append(node.output[0])
        elif node.output[0] not in added:
            if node.op_type in _OWN_MODULES:
                steps.append(Operation(_OWN_MODULES[node.op_type](node), node.input, node.output))
                continue
            older = _with_axes_as_attribute(node, graph.tensors)
            try:
                converter = _newest_known(get_converter, older, opset_of(model))
                module, mapping = converter(OnnxNode(older, f"node{number}"), onnx_graph)
            except Exception:  # The converters raise nearly any type for what they do not know.
                missing[node.op_type] = None
                continue
            steps.append(Operation(module, mapping.inputs, mapping.outputs))
    return steps, list(missing)


def _newest_known(get_converter: Any, node: onnx.NodeProto, version: int) -> Any:
    """Return the converter of an operator, or that of its newest version that is known.

    New versions mostly add types. A difference that matters changes the outputs, which are
    compared. Raises LookupError for an unknown operator.
    """
    for candidate in (version, *(older for older in _VERSIONS if older < version)):
        try:
            return get_converter(node.op_type, candidate, node.domain)
        except NotImplementedError:  # onnx2torch has no converter for this version.
            continue
    raise LookupError(f"no converter for {node.op_type}")


def _with_axes_as_attribute(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> onnx.NodeProto:
    """Return a reduction with its stored axes as an attribute, as before version 18."""
    is_reduction = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
    if not is_reduction or len(node.input) < 2 or node.input[1] not in tensors:
        return node
    older = copy.deepcopy(node)
    axes = tensors[older.input.pop(1)].tolist()
    for entry in [entry for entry in older.attribute if entry.name == "noop_with_empty_axes"]:
        older.attribute.remove(entry)
    older.attribute.append(helper.make_attribute("axes", axes))
    return older


def _gelu(node: onnx.NodeProto) -> nn.Module:
    is_tanh = any(entry.name == "approximate" and entry.s == b"tanh" for entry in node.attribute)
    return nn.GELU("tanh" if is_tanh else "none")


# Operators that the library does not know.
_OWN_MODULES: dict[str, Callable[[onnx.NodeProto], nn.Module]] = {
    "Gelu": _gelu,
    "GlobalMaxPool": lambda node: nn.AdaptiveMaxPool2d(1),
    "Mish": lambda node: nn.Mish(),
}
