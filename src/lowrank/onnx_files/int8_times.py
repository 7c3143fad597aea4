"""Find nodes of a network that are slower in int8 than in float, from latency on a device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from lowrank.devices import FLOAT_PRODUCTS, INTEGER_PRODUCTS, Device, DeviceError
from lowrank.devices.device import QUANTIZATION, NodeTime
from lowrank.onnx_files.node_layers import layers_of_nodes

# An island must be faster in float by this share of its latency in int8. A smaller difference can
# be measurement noise.
MARGIN = 0.1

# Measurement settings: sufficient for nodes that take a few microseconds, and seconds in total.
# They always use one thread and one image, so they do not depend on the settings of a run.
PROFILE = {"warmup_seconds": 0.1, "repeats": 20, "seconds": 0.3}
WHOLE = {
    "sittings": 3,
    "warmup_seconds": 0.1,
    "repeats": 60,
    "seconds": 1.0,
    "energy_seconds": 0,
}

# ONNX Runtime names the conversions of an int8 file after the tensor that they convert.
_CONVERSION = re.compile(r"(.+)_(?:Quantize|Dequantize)Linear")


@dataclasses.dataclass(frozen=True)
class NodeCost:
    """Latency of one node with weights in float and in int8, in µs per run.

    Attributes
    ----------
    name
        Name of the node.
    float_us, int8_us
        Latency of the node in float and in int8.
    conversions_us
        Latency of the conversions next to the node in the int8 file.
    dequantize_us, quantize_us
        Latency of converting its input and its output if the node stays in float, estimated from
        the measured conversions.
    after
        Nodes with weights whose outputs reach this node.
    """

    name: str
    float_us: float
    int8_us: float
    conversions_us: float = 0.0
    dequantize_us: float = 0.0
    quantize_us: float = 0.0
    after: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> NodeCost:
        """Create a cost from the JSON document of `dataclasses.asdict`."""
        return cls(**{**document, "after": tuple(document["after"])})


def slower_in_int8(nodes: Sequence[NodeCost], margin: float = MARGIN) -> tuple[str, ...]:
    """Return the names of nodes that are faster in float, including conversions at their edges.

    Connected nodes that are all slower in int8 form an island. An island needs conversions only at
    its edges. It stays in float if that is faster by `margin`, a share of its latency in int8.
    """
    slow = {node.name for node in nodes if node.int8_us + node.conversions_us > node.float_us}
    kept: set[str] = set()
    for island in _islands(nodes, slow):
        members = [node for node in nodes if node.name in island]
        int8_us = sum(node.int8_us + node.conversions_us for node in members)
        if _float_us(island, nodes) < (1 - margin) * int8_us:
            kept |= island
    return tuple(node.name for node in nodes if node.name in kept)


def decision(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the nodes that stay in float, from the record of one file in `times.json`.

    The tuple is empty if nothing was measured, or if the complete file is not faster with these
    nodes in float. It is faster if the lower end of the confidence interval of the speedup is
    above 1.
    """
    nodes = [NodeCost.from_json(document) for document in record.get("nodes", [])]
    whole_file = record.get("whole")
    if not whole_file or whole_file["speedup_low"] <= 1:
        return ()
    return slower_in_int8(nodes, record["margin"])


def measured_costs(
    model: Path, in_float: Mapping[str, NodeTime], in_int8: Mapping[str, NodeTime]
) -> list[NodeCost]:
    """Combine two profiles: return the costs of each node with weights that is in both.

    Parameters
    ----------
    model
        ONNX file of the network in float, as `export_onnx` writes it.
    in_float, in_int8
        Profiles of ONNX Runtime for that file and for its int8 version.
    """
    graph, owners = onnx.load(model, load_external_data=False).graph, layers_of_nodes(model)
    sizes, after = _sizes(graph), _after(graph, set(owners.values()))
    float_us, int8_us = _product_latencies(in_float, owners), _product_latencies(in_int8, owners)
    conversions = _conversions(in_int8)
    in_float_kernels = {
        owners.get(name) for name, node in in_int8.items() if node.operator in FLOAT_PRODUCTS
    }
    conversions_us = _conversion_latencies(graph, owners, conversions, in_float_kernels)
    estimate_us = _conversion_estimator(conversions, sizes)
    return [
        NodeCost(
            node.name,
            float_us[node.name],
            int8_us[node.name],
            conversions_us.get(node.name, 0.0),
            estimate_us(sizes.get(node.input[0], 0)),
            estimate_us(sizes.get(node.output[0], 0)),
            after[node.name],
        )
        for node in graph.node
        if node.name in float_us and node.name in int8_us
    ]


def measure(
    device: Device,
    model: Path,
    quantized: Path,
    write: Callable[[Sequence[str]], Path],
) -> dict[str, Any]:
    """Measure on a device which nodes should stay in float, and return the record for `times.json`.

    Parameters
    ----------
    device
        Device that runs both files.
    model, quantized
        ONNX files of the network in float and with all nodes in int8.
    write
        Writes the int8 network with some nodes in float, and returns its path.

    Returns
    -------
    dict
        `device`, `environment`, and either `not_measured`, the reason why the device cannot
        measure, or: `margin`; `nodes`, the costs; `candidates` to stay in float; `whole`, the
        speedup of the complete file with the candidates in float, or None without candidates; and
        `kept_in_float`, the nodes from `decision`.
    """
    try:
        environment = device.environment({})
        if reason := device.lacks_int8(quantized, {}):
            return {"device": device.name, "environment": environment, "not_measured": reason}
        nodes = measured_costs(
            model, device.node_times(model, PROFILE), device.node_times(quantized, PROFILE)
        )
        candidates, whole_file = slower_in_int8(nodes), None
        if candidates:
            measured = device.measure(quantized, write(candidates), WHOLE)
            whole_file = {
                "all_in_int8_ms": measured["original"]["p50"],
                "candidates_in_float_ms": measured["compressed"]["p50"],
                **{key: measured[key] for key in ("speedup", "speedup_low", "speedup_high")},
                "warning": measured["conditions"]["warning"],
            }
    except DeviceError as error:
        return {"device": device.name, "not_measured": str(error)}
    record = {
        "device": device.name,
        "environment": environment,
        "margin": MARGIN,
        "nodes": [dataclasses.asdict(node) for node in nodes],
        "candidates": list(candidates),
        "whole": whole_file,
    }
    return {**record, "kept_in_float": list(decision(record))}


def _islands(nodes: Sequence[NodeCost], slow: set[str]) -> list[set[str]]:
    """Group slow nodes that follow one another into islands."""
    islands: list[set[str]] = []
    for node in nodes:
        if node.name in slow:
            connected = [island for island in islands if island.intersection(node.after)]
            islands = [island for island in islands if island not in connected]
            islands.append({node.name}.union(*connected))
    return islands


def _float_us(island: set[str], nodes: Sequence[NodeCost]) -> float:
    """Return the latency of an island in float in µs, including conversions at its edges.

    The input and the output of the network are in float, so they need no conversion.
    """
    before_others = {name for node in nodes if node.name not in island for name in node.after}
    return sum(
        node.float_us
        + (node.dequantize_us if set(node.after) - island else 0.0)
        + (node.quantize_us if node.name in before_others else 0.0)
        for node in nodes
        if node.name in island
    )


def _product_latencies(
    times: Mapping[str, NodeTime], owners: Mapping[str, str]
) -> dict[str, float]:
    """Return the latency of the nodes with weights in µs, by their name in the model."""
    latencies: dict[str, float] = {}
    for name, time in times.items():
        if time.operator in FLOAT_PRODUCTS | INTEGER_PRODUCTS and name in owners:
            owner = owners[name]
            latencies[owner] = latencies.get(owner, 0.0) + 1e3 * time.milliseconds
    return latencies


def _conversions(times: Mapping[str, NodeTime]) -> list[tuple[str, float]]:
    """Return the tensor and the latency in µs of each conversion."""
    return [
        (match[1], 1e3 * time.milliseconds)
        for name, time in times.items()
        if time.operator in QUANTIZATION and (match := _CONVERSION.match(name))
    ]


def _conversion_latencies(
    graph: onnx.GraphProto,
    owners: Mapping[str, str],
    conversions: Sequence[tuple[str, float]],
    in_float_kernels: set[str | None],
) -> dict[str, float]:
    """Return the latency in µs of the conversions next to each node with weights.

    A conversion between two such nodes counts for the node that ran as a float kernel.
    """
    weighted = set(owners.values())
    latencies: dict[str, float] = {}
    for tensor, microseconds in conversions:
        neighbors = [
            node.name for node in graph.node if node.name in weighted and tensor in node.input[:1]
        ]
        neighbors += [owners[tensor]] if tensor in owners else []
        causes = [name for name in neighbors if name in in_float_kernels] or neighbors
        if causes:
            latencies[causes[0]] = latencies.get(causes[0], 0.0) + microseconds
    return latencies


def _conversion_estimator(
    conversions: Sequence[tuple[str, float]], sizes: Mapping[str, int]
) -> Callable[[int], float]:
    """Return a function that estimates the latency in µs of converting a number of elements.

    It scales the latency of the largest conversion, and returns at least the shortest latency.
    """
    known = [(sizes[tensor], us) for tensor, us in conversions if sizes.get(tensor)]
    if not known:
        return lambda _: 0.0
    largest_size, its_us = max(known)
    shortest_us = min(us for _, us in known)
    return lambda elements: max(shortest_us, elements * its_us / largest_size)


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of elements for one image of each tensor whose shape is in the file."""
    sizes = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        sizes[value.name] = 1
        for dimension in value.type.tensor_type.shape.dim:
            sizes[value.name] *= dimension.dim_value or 1
    return sizes


def _after(graph: onnx.GraphProto, weighted: set[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each node with weights, the preceding nodes with weights.

    A node precedes another if its output reaches it directly or through nodes without weights.
    """
    sources: dict[str, set[str]] = {}
    preceding = {}
    for node in graph.node:
        reaching = set().union(*(sources.get(name, set()) for name in node.input))
        if node.name in weighted:
            preceding[node.name] = tuple(sorted(reaching))
            reaching = {node.name}
        sources |= dict.fromkeys(node.output, reaching)
    return preceding
