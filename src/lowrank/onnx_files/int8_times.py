"""Which nodes of a network are slower in int8 than in float, by times measured on a device."""

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

# By this share an island in float must be faster than in int8: less is noise of the clock.
MARGIN = 0.1

# Enough for nodes of some microseconds, and seconds in all. One thread, one image: settings that
# both engines would have to follow are left out.
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
    """What a node with weights takes in float and in int8, in µs of one run.

    `conversions_us` are the conversions beside it in the int8 file. `dequantize_us` and
    `quantize_us` are what converting its input and its result would take if it stayed in float,
    estimated from the conversions that were measured. `after` names the nodes with weights whose
    results reach it.
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
        """The inverse of `dataclasses.asdict`, after JSON."""
        return cls(**{**document, "after": tuple(document["after"])})


def slower_in_int8(nodes: Sequence[NodeCost], margin: float = MARGIN) -> tuple[str, ...]:
    """The names of nodes that are faster in float, the conversions at their edges included.

    Neighbours that are all slower in int8 form an island, which converts at its edges alone. An
    island stays in float where that is faster by `margin`, a share of its time in int8.
    """
    slow = {each.name for each in nodes if each.int8_us + each.conversions_us > each.float_us}
    kept: set[str] = set()
    for island in _islands(nodes, slow):
        inside = [each for each in nodes if each.name in island]
        in_int8 = sum(each.int8_us + each.conversions_us for each in inside)
        if _in_float(island, nodes) < (1 - margin) * in_int8:
            kept |= island
    return tuple(each.name for each in nodes if each.name in kept)


def decision(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The nodes that stay in float, from what `times.json` holds of one file.

    None where nothing was measured, or where the whole file is not faster with them in float: the
    lower end of the interval of the speed-up must be above 1.
    """
    nodes = [NodeCost.from_json(each) for each in record.get("nodes", [])]
    whole = record.get("whole")
    if not whole or whole["speedup_low"] <= 1:
        return ()
    return slower_in_int8(nodes, record["margin"])


def measured_costs(
    model: Path, in_float: Mapping[str, NodeTime], in_int8: Mapping[str, NodeTime]
) -> list[NodeCost]:
    """Bring two profiles together: the costs of each node with weights that both show.

    Parameters
    ----------
    model
        The network in float, as `export_onnx` wrote it.
    in_float, in_int8
        ONNX Runtime's profiles of that file and of the one in int8.
    """
    graph, owners = onnx.load(model, load_external_data=False).graph, layers_of_nodes(model)
    sizes, after = _sizes(graph), _after(graph, set(owners.values()))
    before, behind = _products(in_float, owners), _products(in_int8, owners)
    converted = _converted(in_int8)
    fallen = {owners.get(name) for name, each in in_int8.items() if each.operator in FLOAT_PRODUCTS}
    beside = _charged(graph, owners, converted, fallen)
    estimate = _estimate(converted, sizes)
    return [
        NodeCost(
            node.name,
            before[node.name],
            behind[node.name],
            beside.get(node.name, 0.0),
            estimate(sizes.get(node.input[0], 0)),
            estimate(sizes.get(node.output[0], 0)),
            after[node.name],
        )
        for node in graph.node
        if node.name in before and node.name in behind
    ]


def measure(
    device: Device,
    model: Path,
    quantized: Path,
    write: Callable[[Sequence[str]], Path],
) -> dict[str, Any]:
    """Measure on a device which nodes had better stay in float; what `times.json` holds of a file.

    Parameters
    ----------
    device
        Runs both files.
    model, quantized
        The network in float, and with all its nodes in int8.
    write
        Writes the int8 network with some nodes in float, and returns its path.

    Returns
    -------
    dict
        `device`, `environment`, and `not_measured`, the reason, where the device cannot say;
        else `margin`, `nodes`, `candidates` to stay in float, `whole`, the speed-up of the whole
        file by them, None without candidates, and `kept_in_float`, the `decision`.
    """
    try:
        environment = device.environment({})
        if because := device.lacks_int8(quantized, {}):
            return {"device": device.name, "environment": environment, "not_measured": because}
        nodes = measured_costs(
            model, device.node_times(model, PROFILE), device.node_times(quantized, PROFILE)
        )
        candidates, whole = slower_in_int8(nodes), None
        if candidates:
            found = device.measure(quantized, write(candidates), WHOLE)
            whole = {
                "all_in_int8_ms": found["original"]["p50"],
                "candidates_in_float_ms": found["compressed"]["p50"],
                **{key: found[key] for key in ("speedup", "speedup_low", "speedup_high")},
                "warning": found["conditions"]["warning"],
            }
    except DeviceError as error:
        return {"device": device.name, "not_measured": str(error)}
    record = {
        "device": device.name,
        "environment": environment,
        "margin": MARGIN,
        "nodes": [dataclasses.asdict(each) for each in nodes],
        "candidates": list(candidates),
        "whole": whole,
    }
    return {**record, "kept_in_float": list(decision(record))}


def _islands(nodes: Sequence[NodeCost], slow: set[str]) -> list[set[str]]:
    """Slow nodes, those that follow one another together."""
    islands: list[set[str]] = []
    for each in nodes:
        if each.name in slow:
            touched = [island for island in islands if island.intersection(each.after)]
            islands = [island for island in islands if island not in touched]
            islands.append({each.name}.union(*touched))
    return islands


def _in_float(island: set[str], nodes: Sequence[NodeCost]) -> float:
    """What an island takes in float, with the conversions at its edges.

    What comes from the network's input and what leaves the network is in float already.
    """
    reaching_out = {name for each in nodes if each.name not in island for name in each.after}
    return sum(
        each.float_us
        + (each.dequantize_us if set(each.after) - island else 0.0)
        + (each.quantize_us if each.name in reaching_out else 0.0)
        for each in nodes
        if each.name in island
    )


def _products(times: Mapping[str, NodeTime], owners: Mapping[str, str]) -> dict[str, float]:
    """Microseconds of the nodes with weights, by the name in the model."""
    found: dict[str, float] = {}
    for name, time in times.items():
        if time.operator in FLOAT_PRODUCTS | INTEGER_PRODUCTS and name in owners:
            owner = owners[name]
            found[owner] = found.get(owner, 0.0) + 1e3 * time.milliseconds
    return found


def _converted(times: Mapping[str, NodeTime]) -> list[tuple[str, float]]:
    """The tensor and the microseconds of each conversion."""
    return [
        (match[1], 1e3 * time.milliseconds)
        for name, time in times.items()
        if time.operator in QUANTIZATION and (match := _CONVERSION.match(name))
    ]


def _charged(
    graph: onnx.GraphProto,
    owners: Mapping[str, str],
    converted: Sequence[tuple[str, float]],
    fallen: set[str | None],
) -> dict[str, float]:
    """Microseconds of the conversions beside each node with weights.

    A conversion between two such nodes is caused by the one that `fell` back to float.
    """
    weighted = set(owners.values())
    found: dict[str, float] = {}
    for tensor, microseconds in converted:
        beside = [
            node.name for node in graph.node if node.name in weighted and tensor in node.input[:1]
        ]
        beside += [owners[tensor]] if tensor in owners else []
        causes = [name for name in beside if name in fallen] or beside
        if causes:
            found[causes[0]] = found.get(causes[0], 0.0) + microseconds
    return found


def _estimate(
    converted: Sequence[tuple[str, float]], sizes: Mapping[str, int]
) -> Callable[[int], float]:
    """What converting so many elements takes: by the largest conversion, the shortest at least."""
    known = [(sizes[tensor], us) for tensor, us in converted if sizes.get(tensor)]
    if not known:
        return lambda _: 0.0
    largest, longest = max(known)
    least = min(us for _, us in known)
    return lambda elements: max(least, elements * longest / largest)


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of each tensor whose shape the file states, for one image."""
    found = {}
    for each in [*graph.input, *graph.value_info, *graph.output]:
        found[each.name] = 1
        for size in each.type.tensor_type.shape.dim:
            found[each.name] *= size.dim_value or 1
    return found


def _after(graph: onnx.GraphProto, weighted: set[str]) -> dict[str, tuple[str, ...]]:
    """For each node with weights, those whose results reach it through nodes without."""
    sources: dict[str, set[str]] = {}
    found = {}
    for node in graph.node:
        reaching = set().union(*(sources.get(each, set()) for each in node.input))
        if node.name in weighted:
            found[node.name] = tuple(sorted(reaching))
            reaching = {node.name}
        sources |= dict.fromkeys(node.output, reaching)
    return found
