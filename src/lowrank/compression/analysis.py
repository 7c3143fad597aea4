"""Show what an ONNX file consists of, where its time goes, and what factors could save."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.in_memory import Compression
from lowrank.config.device_kinds import create_device
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.layers import REST, Layer
from lowrank.core.plans import PlannedLayer
from lowrank.onnx_files.node_layers import layers_of_nodes
from lowrank.onnx_networks.model_file import opset_of
from lowrank.onnx_networks.model_run import write_optimized
from lowrank.ranks.any_rule import rank_settings


@dataclass(frozen=True)
class AnalyzedLayer:
    """A layer, its latency, and what factors at the ranks of EVBMF would save.

    `milliseconds` is None if latencies were not measured. `planned` is None for a layer that
    factors cannot replace; `layer.not_factored` then is the reason.
    """

    layer: Layer
    milliseconds: float | None
    planned: PlannedLayer | None


@dataclass(frozen=True)
class Analysis:
    """The layers of a network in forward order, and figures of the whole.

    Parameters
    ----------
    layers
        The layers.
    shapes
        Shape of each input for one sample.
    opset
        Version of the standard operator set.
    size_bytes
        Size of the file with its weights.
    rest_milliseconds
        Latency of everything that is no layer; None if latencies were not measured.
    """

    layers: tuple[AnalyzedLayer, ...]
    shapes: Mapping[str, Sequence[int]]
    opset: int
    size_bytes: int
    rest_milliseconds: float | None

    @property
    def macs(self) -> tuple[int, int]:
        """MACs of all layers for one sample, before and with the factors."""
        before = [entry.layer.dense_macs for entry in self.layers]
        after = [
            entry.planned.macs[1] if entry.planned and not entry.planned.is_dense else macs
            for entry, macs in zip(self.layers, before, strict=True)
        ]
        return sum(before), sum(after)

    @property
    def milliseconds(self) -> float | None:
        """Latency of the network for one sample, the sum over its nodes."""
        if self.rest_milliseconds is None:
            return None
        return self.rest_milliseconds + sum(entry.milliseconds or 0.0 for entry in self.layers)


def analyze_model(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Sequence[int]] | None,
    factorize: Mapping[str, str],
    *,
    threads: int,
    seconds: float,
) -> Analysis:
    """Find the layers of an ONNX file, measure their latency here and estimate their ranks.

    Parameters
    ----------
    path
        The file.
    inputs
        Shape of each input for one sample, where the file leaves sizes open.
    factorize
        Factorization of each kind of layer.
    threads
        Number of threads of ONNX Runtime.
    seconds
        Time for the measurement of latencies; 0 to skip it.

    Raises
    ------
    UserError
        If the file cannot be used; see `GraphNetwork.read`.
    DeviceError
        If ONNX Runtime cannot run the network with these settings.
    """
    network = GraphNetwork.read(path, inputs, [])
    latencies = _latencies(network, threads, seconds) if seconds else None
    planned = {}
    if any(not layer.not_factored for layer in network.table.layers):
        compression = Compression.of(network, FactorizeSettings.model_validate(factorize))
        rule = rank_settings({"select": "vbmf", "negligible": 0})
        planned = {layer.name: layer for layer in compression.plan(rule)}
    return Analysis(
        layers=tuple(
            AnalyzedLayer(
                layer,
                None if latencies is None else latencies.get(layer.name, 0.0),
                planned.get(layer.name),
            )
            for layer in network.table.layers
        ),
        shapes=network.shapes,
        opset=opset_of(network.model),
        size_bytes=network.model.ByteSize(),
        rest_milliseconds=None if latencies is None else latencies[REST],
    )


def _latencies(network: GraphNetwork, threads: int, seconds: float) -> dict[str, float]:
    """Return the milliseconds of each layer, and of the rest."""
    settings = {"threads": threads, "seconds": seconds, "warmup_seconds": seconds / 4}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_optimized(_named_after_layers(network), path, network.label)
        layers, latencies = layers_of_nodes(path), {REST: 0.0}
        for node, time in create_device("local", {}).node_times(path, settings).items():
            # The names of layers contain no slash; ONNX Runtime appends the name of a fusion.
            name = layers.get(node, REST).partition("/")[0]
            latencies[name] = latencies.get(name, 0.0) + time.milliseconds
    return latencies


def _named_after_layers(network: GraphNetwork) -> onnx.ModelProto:
    """Return a copy with fixed sizes, and with nodes that have the names of their layers."""
    copy = network.copy().model
    names = {site.output: site.layer.name for site in network.sites}
    for node in copy.graph.node:
        for output in node.output:
            node.name = names.get(output, node.name)
    for graph_input in copy.graph.input:
        if graph_input.name in network.shapes:
            dimensions = graph_input.type.tensor_type.shape.dim
            for dimension, size in zip(dimensions, network.shapes[graph_input.name], strict=True):
                dimension.dim_value = size
    return copy
