"""Compare all variants: a record for each, the Pareto fronts, and a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from lowrank.config.params import trial_name
from lowrank.report.headline import at

# Method name of the original network. The original in int8 is the control.
ORIGINAL = "original"

Record = dict[str, Any]


def records_of(model: str, method: str, result: Mapping[str, Any]) -> list[Record]:
    """Return the records of one result: the original and the variant on each device.

    Parameters
    ----------
    model, method
        The model and the method of the variant.
    result
        The result that the step `summarize` writes.

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
            "top1_percent": result["accuracy"]["original"],
            **{key: result[name]["original"] for key, name in _COUNTS.items()},
            **_measured(result, device, "original"),
        }
        records.append(before)
        for name, precision, document in networks:
            record = _record(model, name, precision, device, result)
            records.append(record | _compared(result, document, device))
            if name == ORIGINAL:
                # int8 does not change these counts, so they have no ratio.
                unchanged = ("macs", "parameters")
                records[-1] |= {key: result[key]["original"] for key in unchanged}
                records[-1] |= {f"{key}_ratio": None for key in unchanged}
                records[-1] |= {"finetune_steps": None, "speedup_over_control": None}
                records[-1] |= {"points_below_control": None}
    return records


def _compared(result: Mapping[str, Any], document: Mapping[str, Any], device: str) -> Record:
    """Return the figures of one network of a result, compared with the original and the control."""
    top1 = document["accuracy"]["exported"]
    latency = document["latency_ms"].get(device, {})
    record = {
        "top1_percent": top1,
        "points_lost": round(result["accuracy"]["original"] - top1, 2),
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
        record["points_below_control"] = round(control["accuracy"]["exported"] - top1, 2)
        speedup = at(control, f"latency_ms.{device}.speedup")
        if record["speedup_over_control"] is None and speedup and record["speedup"]:
            record["speedup_over_control"] = record["speedup"] / speedup
    return record


# Name of a quantity in a record, and its name in the result.
_COUNTS = {"macs": "macs", "parameters": "parameters", "onnx_bytes": "size_bytes"}

_COLUMNS = (
    *("network", "method", "precision", "device", "cpu", "top1_percent", "points_lost"),
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


def overview(results: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[Record]:
    """Return the records of all variants, by network, device and CPU, originals first.

    The originals in float32 and int8 are measured together with every variant. Their record is the
    median of these measurements. A search and its chosen trial are the same network, so only the
    record of the search is returned.

    Latencies on different CPUs are never compared. If a device had several CPUs, each CPU has its
    own originals and its own Pareto front.

    Each record gets a `relative_latency`, its share of the latency of the float32 original. It is
    computed only from ratios of alternating runs, because medians of runs at different times depend
    on the load of the machine. Each record also gets `on_front_by_latency` and `on_front_by_macs`:
    whether no other network with the same model, device and CPU is as accurate at a lower cost.

    Parameters
    ----------
    results
        Model, method and result of each variant.
    """
    results = list(results)
    chosen_trials = {
        (model, trial_name(method, result["search"]["taken"]))
        for model, method, result in results
        if "search" in result
    }
    originals: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    variants: dict[tuple[str, ...], list[Record]] = {}
    for model, method, result in results:
        if (model, method) in chosen_trials:
            continue
        for record in records_of(model, method, result):
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
            front = pareto_front([(record[cost], record["top1_percent"]) for record in records])
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


def place_of(record: Record) -> tuple[str, str, str | None]:
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


def pareto_front(points: Sequence[tuple[float | None, float]]) -> set[int]:
    """Return the indices of the points, (cost, accuracy), on the Pareto front.

    A point is on the front if no other point has a lower or equal cost and a higher or equal
    accuracy. A point without a cost is not on the front. Of equal points, only the first is.
    """
    known = [(cost, -accuracy, index) for index, (cost, accuracy) in enumerate(points) if cost]
    front, best = set(), float("-inf")
    for _, negative_accuracy, index in sorted(known):
        if -negative_accuracy > best:
            front.add(index)
            best = -negative_accuracy
    return front


_HEADINGS = {
    "network": ("network", "{}"),
    "method": ("method", "{}"),
    "precision": ("in", "{}"),
    "device": ("device", "{}"),
    "cpu": ("CPU", "{}"),
    "top1_percent": ("top-1, %", "{:.2f}"),
    "points_lost": ("lost", "{:.2f}"),
    "points_below_control": ("lost against int8 original", "{:.2f}"),
    "p50_ms": ("latency, ms", "{:.3f}"),
    "original_p50_ms": ("original beside it, ms", "{:.3f}"),
    "speedup": ("faster", "{:.2f}x"),
    "speedup_over_control": ("faster than int8 original", "{:.2f}x"),
    "relative_latency": ("share of the original's latency", "{:.3f}"),
    "macs": ("MACs", "{:,}"),
    "macs_ratio": ("fewer", "{:.2f}x"),
    "onnx_bytes": ("ONNX file, bytes", "{:,}"),
    "onnx_bytes_ratio": ("smaller", "{:.1f}x"),
    "energy_mj": ("energy, mJ", "{:.2f}"),
    "on_front_by_latency": ("best at its latency", "{}"),
}

TITLE = "All variants"

# Explanation of the table's columns, one paragraph per entry.
_LEGEND = (
    "Top-1 is measured on the test images. *Lost* is the difference to the original in float32, in "
    "points. The original in int8 is the control: one line of ONNX Runtime gives it without any "
    "compression.",
    "*Latency* is the median over all runs of one network. *Original beside it* is the median of "
    "the original in float32 in the same alternating runs. *Faster* is the median of the ratios of "
    "both, one for each pair of runs, so it differs a little from the quotient of the two medians.",
    "*Faster than int8 original* is measured in alternating runs of the two networks if both are "
    "in int8. Otherwise it is the quotient of their speed-ups over the original in float32.",
    "The row of an original holds the medians of the measurements beside each variant.",
    "*Share of the original's latency* is computed only from these ratios, for int8 networks "
    "through the control, because medians of runs at different times cannot be compared.",
    "*Best at its latency*: no network of the same original, device and CPU is as accurate at a "
    "smaller share.",
)


def legend(records: Sequence[Record]) -> list[str]:
    """Return the legend of the table as paragraphs. Names of columns are marked as *name*."""
    cpus = cpus_of(records)
    listed = [f"{device}: {', '.join(names)}" for device, names in cpus.items() if names]
    lines = [*_LEGEND, *([f"CPU of each device: {'; '.join(listed)}."] if listed else [])]
    if _cpus_differ(records):
        lines.append(
            "Warning: rows of one device were measured on different CPUs. Compare milliseconds and "
            "speed-ups only between rows of the same CPU."
        )
    return lines


def cpus_of(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the CPUs on which was measured, by the name of the device."""
    cpus: dict[str, dict[str, None]] = {}
    for record in records:
        device_cpus = cpus.setdefault(record["device"], {})
        if record["cpu"]:
            device_cpus[record["cpu"]] = None
    return {device: list(names) for device, names in cpus.items()}


def _cpus_differ(records: Sequence[Record]) -> bool:
    return any(len(names) > 1 for names in cpus_of(records).values())


def markdown(records: Sequence[Record]) -> str:
    """Return the records as a Markdown page, without empty columns."""
    headings, *rows = _cells(records)
    lines = [headings, ["---"] * len(headings), *rows]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return "\n\n".join([f"# {TITLE}", *legend(records), table])


def html(records: Sequence[Record]) -> str:
    """Return the records as an HTML page, without empty columns."""
    headings, *rows = _cells(records)
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in headings)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows]
    paragraphs = [re.sub(r"\*(.+?)\*", r"<em>\1</em>", escape(line)) for line in legend(records)]
    return _PAGE.format(
        title=TITLE,
        legend="\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs),
        rows="\n".join(lines),
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 14px sans-serif; margin: 1em; }}
  p {{ max-width: 60em; margin: 0.4em 0; }}
  table {{ border-collapse: collapse; margin-top: 1em; }}
  th, td {{ padding: 3px 9px; border-bottom: 1px solid #ccc; text-align: right; }}
  th:nth-child(-n+4), td:nth-child(-n+4) {{ text-align: left; }}
</style>
</head>
<body>
<h1>{title}</h1>
{legend}
<table>
{rows}
</table>
</body>
</html>
"""


def _cells(records: Sequence[Record]) -> list[list[str]]:
    """Return a row of headings and a row for each record, without empty columns.

    The column of the CPU is left out if each device has one CPU, which the legend names.
    """
    columns = [key for key in _HEADINGS if any(record[key] is not None for record in records)]
    if not _cpus_differ(records):
        columns = [key for key in columns if key != "cpu"]
    headings = [_HEADINGS[key][0] for key in columns]
    return [headings, *([_cell(key, record[key]) for key in columns] for record in records)]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return _HEADINGS[key][1].format(value)
