"""Compare all variants: a record for each, the Pareto fronts, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from lowrank.config.params import trial_name
from lowrank.core.metric import Metric
from lowrank.report.headline import at

# Method name of the original network. The original in int8 is the control.
ORIGINAL = "original"

Record = dict[str, Any]
Place = tuple[str, str, str | None]


def records_of(model: str, method: str, result: Mapping[str, Any], metric: Metric) -> list[Record]:
    """Return the records of one result: the original and the variant on each device.

    Parameters
    ----------
    model, method
        The model and the method of the variant.
    result
        The result that the step `summarize` writes.
    metric
        Main metric of the model's task. Its value is the `accuracy` of a record.

    Returns
    -------
    list of dict
        Records of scalars with their unit in their name, or None if not measured. The order for
        each device is: the original in float32, the original in int8 (the control) if the result
        contains it, the variant in float32, the variant in int8 if the result contains it.
    """
    networks: list[tuple[str, str, Mapping[str, Any]]] = [(method, "float32", result)]
    if control := at(result, "control.int8"):
        networks.insert(0, (ORIGINAL, "int8", control))
    if "int8" in result:
        networks.append((method, "int8", result["int8"]))
    records = []
    for device in result["latency_ms"]:
        before = _record(model, ORIGINAL, "float32", device, result)
        before |= {
            "accuracy": result["accuracy"]["original"],
            **{key: result[name]["original"] for key, name in _COUNTS.items()},
            **_measured(result, device, "original"),
        }
        records.append(before)
        for name, precision, document in networks:
            record = _record(model, name, precision, device, result)
            records.append(record | _compared(result, document, device, metric))
            if name == ORIGINAL:
                # int8 does not change these counts, so they have no ratio.
                unchanged = ("macs", "parameters")
                records[-1] |= {key: result[key]["original"] for key in unchanged}
                records[-1] |= {f"{key}_ratio": None for key in unchanged}
                records[-1] |= {"finetune_steps": None, "speedup_over_control": None}
                records[-1] |= {"points_below_control": None}
    return records


def _compared(
    result: Mapping[str, Any], document: Mapping[str, Any], device: str, metric: Metric
) -> Record:
    """Return the figures of one network of a result, compared with the original and the control."""
    value = document["accuracy"]["exported"]
    latency = document["latency_ms"].get(device, {})
    record = {
        "accuracy": value,
        "points_lost": _lost(result["accuracy"]["original"], value, metric),
        "finetune_steps": result["finetune"]["steps"],
        **_measured(document, device, "compressed"),
        "original_p50_ms": latency.get("original", {}).get("p50"),
        **{key: latency.get(key) for key in ("speedup", "speedup_low", "speedup_high")},
        "speedup_over_control": latency.get("speedup_over_control"),
    }
    for key, name in _COUNTS.items():
        counted = document.get(name, result[name])
        record |= {key: counted["compressed"], f"{key}_ratio": counted["ratio"]}
    if control := at(result, "control.int8"):
        record["points_below_control"] = _lost(control["accuracy"]["exported"], value, metric)
        speedup = at(control, f"latency_ms.{device}.speedup")
        if record["speedup_over_control"] is None and speedup and record["speedup"]:
            record["speedup_over_control"] = record["speedup"] / speedup
    return record


def _lost(before: float, after: float, metric: Metric) -> float:
    return round(metric.loss(before, after), metric.digits)


# Name of a quantity in a record, and its name in the result.
_COUNTS = {"macs": "macs", "parameters": "parameters", "onnx_bytes": "size_bytes"}

_COLUMNS = (
    *("network", "method", "precision", "device", "cpu", "accuracy", "points_lost"),
    *("points_below_control", "p50_ms", "original_p50_ms"),
    *("speedup", "speedup_low", "speedup_high", "speedup_over_control", "relative_latency"),
    *("macs", "macs_ratio", "parameters", "parameters_ratio", "onnx_bytes", "onnx_bytes_ratio"),
    *("energy_mj", "peak_memory_mb", "finetune_steps"),
)


def _record(
    model: str, method: str, precision: str, device: str, result: Mapping[str, Any]
) -> Record:
    named = {"network": model, "method": method, "precision": precision, "device": device}
    return dict.fromkeys(_COLUMNS) | named | {"cpu": at(result, f"environment.{device}.cpu")}


def _measured(document: Mapping[str, Any], device: str, network: str) -> Record:
    """Return latency, energy and memory of `original` or `compressed`; None if not measured."""

    def value_of(quantity: str) -> Any:
        return document.get(quantity, {}).get(device, {}).get(network)

    latency = value_of("latency_ms") or {}
    return {
        "p50_ms": latency.get("p50"),
        "energy_mj": value_of("energy_mj"),
        "peak_memory_mb": value_of("memory_mb"),
    }


def overview(
    results: Iterable[tuple[str, str, Mapping[str, Any]]], metrics: Mapping[str, Metric]
) -> list[Record]:
    """Return the records of all variants, by network, device and CPU, originals first.

    The originals in float32 and int8 are measured together with every variant. Their record is the
    median of these measurements. A search and its chosen trial are the same network, so only the
    record of the search is returned.

    Latencies on different CPUs are never compared. If a device had several CPUs, each CPU has its
    own originals and its own Pareto front.

    Each record gets a `relative_latency`, its share of the latency of the float32 original. It is
    computed only from ratios of alternating runs, because medians of runs at different times depend
    on the load of the machine. Each record also gets `on_front_by_latency` and `on_front_by_macs`:
    whether no other network with the same model, device and CPU is as good at a lower cost.

    Parameters
    ----------
    results
        Model, method and result of each variant.
    metrics
        Main metric of the task of each model.
    """
    results = list(results)
    chosen_trials = {
        (model, trial_name(method, result["search"]["taken"]))
        for model, method, result in results
        if "search" in result
    }
    originals: dict[Place, dict[str, list[Record]]] = {}
    variants: dict[Place, list[Record]] = {}
    for model, method, result in results:
        if (model, method) in chosen_trials:
            continue
        for record in records_of(model, method, result, metrics[model]):
            place = place_of(record)
            if record["method"] == ORIGINAL:
                by_precision = originals.setdefault(place, {})
                by_precision.setdefault(record["precision"], []).append(record)
            else:
                variants.setdefault(place, []).append(record)
    all_records = []
    for place, by_precision in originals.items():
        records = [*map(_median_of, by_precision.values()), *variants[place]]
        control = next((record for record in records if _is_control(record)), None)
        for record in records:
            record["relative_latency"] = _relative_latency(record, control)
        for name, cost in (("latency", "relative_latency"), ("macs", "macs")):
            front = pareto_front(
                [(record[cost], record["accuracy"]) for record in records], metrics[place[0]]
            )
            for index, record in enumerate(records):
                record[f"on_front_by_{name}"] = index in front
        all_records += records
    return all_records


def _is_control(record: Record) -> bool:
    return record["method"] == ORIGINAL and record["precision"] == "int8"


def _relative_latency(record: Record, control: Record | None) -> float | None:
    """Return the latency as a share of the float32 original's, or None if it was not measured.

    For an int8 network, the share is computed from its ratio to the control, if alternating runs
    of the two have measured it. So its share is larger than the control's only if it is slower.
    """
    if record["method"] == ORIGINAL and record["precision"] == "float32":
        return 1.0 if record["p50_ms"] else None
    speedup, over_control = record["speedup"], record["speedup_over_control"]
    if record["precision"] == "int8" and over_control and control and control["speedup"]:
        speedup = over_control * control["speedup"]
    return 1 / speedup if speedup else None


def place_of(record: Record) -> Place:
    """Return the network, the device and the CPU, which comparable latencies have in common."""
    return record["network"], record["device"], record["cpu"]


# Columns of an original that are measured again together with each variant.
_MEASURED_EACH_TIME = (
    *("p50_ms", "original_p50_ms", "speedup", "speedup_low", "speedup_high"),
    *("energy_mj", "peak_memory_mb"),
)


def _median_of(measured: Sequence[Record]) -> Record:
    """Merge the records of one original, with the median of each repeated measurement."""
    merged = dict(measured[0])
    for key in _MEASURED_EACH_TIME:
        values = [record[key] for record in measured if record[key] is not None]
        merged[key] = median(values) if values else None
    return merged


def pareto_front(points: Sequence[tuple[float | None, float]], metric: Metric) -> set[int]:
    """Return the indices of the points, (cost, value of the metric), on the Pareto front.

    A point is on the front if no other point has a lower or equal cost and a better or equal
    value. A point without a cost is not on the front. Of equal points, only the first is.
    """
    known = [
        (cost, metric.loss(0.0, value), index) for index, (cost, value) in enumerate(points) if cost
    ]
    front, best = set(), float("inf")
    for _, badness, index in sorted(known):
        if badness < best:
            front.add(index)
            best = badness
    return front
