"""Find the layers of an ONNX graph that factors can replace, and read their weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from torch import nn

from lowrank.core.layers import Layer, LayerTable, Pair, with_feeders
from lowrank.onnx_networks.branch_removal import added_outputs
from lowrank.onnx_networks.channels import follow_channels
from lowrank.onnx_networks.constants import Constants, attributes_of
from lowrank.onnx_networks.model_file import nodes_of
from lowrank.onnx_networks.model_run import ModelRun, zeros

_FLATTENING = ("Flatten", "Reshape")


@dataclass(frozen=True)
class Site:
    """The place of a layer in the graph.

    Parameters
    ----------
    layer
        The layer, as in the layer table.
    operator
        Operator of its node: Conv, ConvTranspose, Gemm or MatMul.
    output
        Output tensor of its node, which identifies the node.
    source
        Tensor that its node reads.
    input
        Tensor that the layer reads. Behind a flattened map, the map before it is flattened.
    weight, bias
        Tensors that hold its weight and its bias. `bias` is None for a layer without one.
    pads
        Padding in pixels before and after the map, for each axis of a convolution.
    stored_by_input
        Whether the weight of a product is stored as (inputs, outputs).
    scales
        Factors of the weight and of the bias, alpha and beta of a Gemm.
    add
        Output tensor of the node that adds the bias of a MatMul, or None.
    """

    layer: Layer
    operator: str
    output: str
    source: str
    input: str
    weight: str
    bias: str | None = None
    pads: tuple[Pair, ...] = ()
    stored_by_input: bool = False
    scales: tuple[float, float] = (1.0, 1.0)
    add: str | None = None


def find_sites(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], label: str
) -> tuple[Site, ...]:
    """Return the layers of a network and their places, in the order of the graph.

    Sizes of maps come from one run on zeros of `shapes`, the shape of each input for one sample.
    Layers in subgraphs, and products of two activations, are not included. A product behind a
    flattened map of more than one pixel is described as a convolution with a kernel of the size of
    that map, as in `lowrank.surgery.finding`.

    Raises UserError if ONNX Runtime cannot load or run the network.
    """
    return _Search(model, shapes, label).sites()


def table_of(sites: Sequence[Site], shapes: Mapping[str, Sequence[int]], label: str) -> LayerTable:
    """Return the layer table of a network; `shapes` as in `find_sites`."""
    first = next(iter(shapes.values()))
    return LayerTable(label, tuple(first[1:]), tuple(site.layer for site in sites))


def weight_and_bias(site: Site, constants: Constants) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the kernel, (T, S / g, D_h, D_w) or (T, S D_h D_w), and the bias, (T,), in float32."""
    weight = constants.array(site.weight).astype(np.float32) * np.float32(site.scales[0])
    if site.operator.startswith("Conv"):
        weight = weight.reshape(*weight.shape[:2], *_two_axes(weight.shape[2:]))
    elif site.stored_by_input:
        weight = np.ascontiguousarray(weight.T)
    if site.bias is None:
        return weight, None
    bias = constants.array(site.bias).astype(np.float32).reshape(-1) * np.float32(site.scales[1])
    return weight, np.broadcast_to(bias, (site.layer.out_channels,)).copy()


def layer_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the name of each layer of a graph by the output of its node."""
    constants = Constants(graph)
    return _unique_names([node for node in graph.node if _has_weight(node, constants)])


class _Search:
    """The search for the layers of one network."""

    def __init__(
        self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], label: str
    ) -> None:
        graph = self._graph = model.graph
        self._constants = Constants(graph)
        self._nodes = [node for node in graph.node if _has_weight(node, self._constants)]
        self._producers = {output: node for node in graph.node for output in node.output}
        self._readers = Counter(name for node, _ in nodes_of(graph) for name in node.input)
        self._readers.update(output.name for output in graph.output)
        self._adds = {
            name: node for node in graph.node if node.op_type == "Add" for name in node.input
        }
        self._names = _unique_names(self._nodes)
        watched = {node.input[0] for node in self._nodes}
        for name in tuple(watched):
            producer = self._producers.get(name)
            if producer is not None and producer.op_type in _FLATTENING:
                watched.add(producer.input[0])
        inner = [name for name in watched if name in self._producers]
        values = ModelRun(model, label, inner=inner)(zeros(model, shapes))
        self._sizes: dict[str, tuple[int, ...]] = {
            **{name: tuple(shape) for name, shape in shapes.items()},
            **{name: values[name].shape for name in inner},
        }

    def sites(self) -> tuple[Site, ...]:
        """Return all layers with their obstacles."""
        sites = []
        for node in self._nodes:
            if node.input[0] not in self._sizes:
                continue  # A product of two stored tensors.
            site = self._convolution(node) if "Conv" in node.op_type else self._product(node)
            reason = self._obstacle(site, node)
            sites.append(replace(site, layer=replace(site.layer, not_factored=reason)))
        outputs = added_outputs(self._graph)
        added = {self._names[name] for name in outputs if name in self._names}
        layers = with_feeders([site.layer for site in sites], self._feeders(), added)
        return tuple(replace(site, layer=layer) for site, layer in zip(sites, layers, strict=True))

    def _feeders(self) -> dict[str, str]:
        """Return for each layer the layer whose channels it alone reads, by their names."""
        return {
            self._names[reader.output[0]]: self._names[channels.layer.output[0]]
            for channels in follow_channels(self._graph, lambda node: True)
            if (reader := channels.only_reader) is not None
        }

    def _convolution(self, node: onnx.NodeProto) -> Site:
        attributes = attributes_of(node)
        weight, size = self._constants.shape(node.input[1]), self._sizes[node.input[0]][2:]
        kernel, groups = weight[2:], attributes.get("group", 1)
        strides = tuple(attributes.get("strides", (1,) * len(kernel)))
        dilations = tuple(attributes.get("dilations", (1,) * len(kernel)))
        pads = _pads(attributes, size, kernel, strides, dilations)
        transposed = node.op_type == "ConvTranspose"
        outputs, inputs = (
            (weight[1] * groups, weight[0]) if transposed else (weight[0], weight[1] * groups)
        )
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        layer = Layer(
            name=self._names[node.output[0]],
            kind="transposed_conv" if transposed else "conv",
            in_channels=inputs,
            out_channels=outputs,
            groups=groups,
            bias=bias is not None,
        )
        if transposed or len(kernel) > 2:
            layer = replace(layer, kernel=_two_axes(kernel), input_map=_two_axes(size))
        else:
            # The layer table has one padding for both sides. What is added on one side only counts
            # as part of the map; with less padding after the map than before it, all of it does.
            own = [before for before, _ in pads]
            if any(after < before for before, after in pads):
                own = [0 for _ in pads]
            extra = [
                before + after - 2 * pad for (before, after), pad in zip(pads, own, strict=True)
            ]
            layer = replace(
                layer,
                kernel=_two_axes(kernel),
                stride=_two_axes(strides),
                dilation=_two_axes(dilations),
                padding=_two_axes(own, filler=0),
                input_map=_two_axes([n + more for n, more in zip(size, extra, strict=True)]),
            )
        source = node.input[0]
        return Site(
            layer, node.op_type, node.output[0], source, source, node.input[1], bias, tuple(pads)
        )

    def _product(self, node: onnx.NodeProto) -> Site:
        attributes, shape = attributes_of(node), self._constants.shape(node.input[1])
        by_input = not attributes.get("transB", 0)
        inputs, outputs = shape if by_input else shape[::-1]
        bias, add = None, None
        if node.op_type == "Gemm":
            if len(node.input) > 2 and node.input[2]:
                bias = node.input[2]
        elif (found := self._added_bias(node, outputs)) is not None:
            add, bias = found
        source, channels, kernel = self._before_flattening(node.input[0], inputs)
        positions = (prod(self._sizes[node.input[0]]) // inputs, 1)
        layer = Layer(
            name=self._names[node.output[0]],
            kind="linear",
            in_channels=channels,
            out_channels=outputs,
            kernel=kernel,
            bias=bias is not None,
            input_map=kernel if kernel != (1, 1) else positions,
        )
        return Site(
            layer,
            node.op_type,
            node.output[0],
            node.input[0],
            source,
            node.input[1],
            bias,
            stored_by_input=by_input,
            scales=(attributes.get("alpha", 1.0), attributes.get("beta", 1.0)),
            add=add,
        )

    def _added_bias(self, node: onnx.NodeProto, outputs: int) -> tuple[str, str] | None:
        """Return the node that adds a stored bias to a product, by its output, and the bias."""
        add = self._adds.get(node.output[0])
        if add is None or self._readers[node.output[0]] != 1:
            return None
        bias = next(name for name in add.input if name != node.output[0])
        if bias not in self._constants or self._constants.shape(bias) != (outputs,):
            return None
        return add.output[0], bias

    def _before_flattening(self, name: str, inputs: int) -> tuple[str, int, Pair]:
        """Return the map that was flattened to a product's input, its channels and its size."""
        producer = self._producers.get(name)
        if producer is not None and producer.op_type in _FLATTENING:
            before, after = self._sizes[producer.input[0]], self._sizes[name]
            is_map = len(before) == 4 and prod(before[2:]) > 1 and before[0] == after[0]
            if is_map and after[1:] == (inputs,) and prod(before[1:]) == inputs:
                return producer.input[0], before[1], (before[2], before[3])
        return name, inputs, (1, 1)

    def _obstacle(self, site: Site, node: onnx.NodeProto) -> str | None:
        """Return why factors cannot replace a layer, or None."""
        layer, constants = site.layer, self._constants
        if not constants.is_float(site.weight):
            return "its weight is not in floating point"
        if self._readers[site.weight] > 1:
            return "another layer shares its weight"
        if layer.kind == "transposed_conv":
            return "a transposed convolution"
        if site.operator == "Conv" and len(constants.shape(site.weight)) > 4:
            return "a convolution over three axes"
        if layer.groups == layer.in_channels and layer.groups > 1:
            return "depthwise: with one input channel per group, there is nothing to factor"
        if site.bias and site.bias not in constants:
            return "its bias is computed from other tensors"
        if site.bias and prod(constants.shape(site.bias)) not in (1, layer.out_channels):
            return "its bias is not one value for each output channel"
        if attributes_of(node).get("transA", 0):
            return "its input is transposed"
        if not _is_finite(constants.array(site.weight)):
            return "its weight contains NaN or infinity"
        return None


def _has_weight(node: onnx.NodeProto, constants: Constants) -> bool:
    """Return whether a node is a layer: a convolution or a product with a stored weight."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    if node.domain not in ("", "ai.onnx") or node.input[1] not in constants:
        return False
    axes = len(constants.shape(node.input[1]))
    return axes >= 3 if "Conv" in node.op_type else axes == 2


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())


def _pads(
    attributes: Mapping[str, Any],
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[Pair]:
    """Return the padding before and after the map along each axis."""
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        pads = attributes.get("pads", (0,) * 2 * len(kernel)) if mode == "NOTSET" else ()
        pads = pads or (0,) * 2 * len(kernel)
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    result = []
    for length, window, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + dilation * (window - 1) + 1 - length, 0)
        smaller, larger = total // 2, total - total // 2
        result.append((smaller, larger) if mode == "SAME_UPPER" else (larger, smaller))
    return result


def _two_axes(lengths: Sequence[int], filler: int = 1) -> Pair:
    """Return lengths along two axes: a second axis is added, or axes after the first are merged."""
    first, *others = lengths
    return first, prod(others) if others else filler


def _unique_names(nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """Return a name for each layer by the output of its node, as PyTorch names modules.

    `/blocks/0/conv/Conv` becomes `blocks.0.conv`. A layer without a name gets that of its output.
    Names contain no characters that have a meaning in paths. Each can be the place of a module in
    PyTorch: no part is an attribute of all modules, and no layer is in another one.
    """
    names: dict[str, str] = {}
    places: set[str] = set()
    for node in nodes:
        name = (node.name or node.output[0]).removesuffix(f"/{node.op_type}").strip("/")
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.replace("/", "."))
        parts = [part for part in name.split(".") if part] or [node.op_type]
        name = ".".join(f"{part}_" if hasattr(nn.Module, part) else part for part in parts)
        unique, count = name, 1
        while unique in places or not names.keys().isdisjoint(_above(unique)):
            count += 1
            unique = f"{name}_{count}"
        places |= {unique, *_above(unique)}
        names[unique] = node.output[0]
    return {output: name for name, output in names.items()}


def _above(name: str) -> list[str]:
    """Return the places that contain a dotted name: `a` and `a.b` for `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
