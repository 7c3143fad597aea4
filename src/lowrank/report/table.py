"""All variants side by side: a record for each, which of them are worth having, and a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from lowrank.config.params import trial_name
from lowrank.report.headline import at

# The network as it was, among the methods. In int8 it is the control.
ORIGINAL = "original"

Record = dict[str, Any]


def records_of(model: str, method: str, result: Mapping[str, Any]) -> list[Record]:
    """Return the records of one result: for each device, of the original and the variant.

    Parameters
    ----------
    model, method
        Of the variant.
    result
        As the step `summarize` writes it.

    Returns
    -------
    list of dict
        Scalars, with their unit in their name; None where something was not measured. For each
        device the original in float32 and, where the result has it, in int8 (the control), as they
        were measured there; then the variant in float32 and, where it has that, in int8.
    """
    networks: list[tuple[str, str, Mapping[str, Any]]] = [(method, "float32", result)]
    if control := at(result, "control.int8"):
        networks.insert(0, (ORIGINAL, "int8", control))
    if "int8" in result:
        networks.append((method, "int8", result["int8"]))
    found = []
    for device in result["latency_ms"]:
        before = _record(model, ORIGINAL, "float32", device, result)
        before |= {
            "top1_percent": result["accuracy"]["original"],
            **{key: result[name]["original"] for key, name in _COUNTS.items()},
            **_measured(result, device, "original"),
        }
        found.append(before)
        for name, precision, document in networks:
            record = _record(model, name, precision, device, result)
            found.append(record | _compared(result, document, device))
            if name == ORIGINAL:
                # What int8 leaves as it is has no ratio.
                unchanged = ("macs", "parameters")
                found[-1] |= {key: result[key]["original"] for key in unchanged}
                found[-1] |= {f"{key}_ratio": None for key in unchanged}
                found[-1] |= {"finetune_steps": None, "speedup_over_control": None}
                found[-1] |= {"points_below_control": None}
    return found


def _compared(result: Mapping[str, Any], document: Mapping[str, Any], device: str) -> Record:
    """Return what is known of one network of a result beside the original and the control."""
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


# What a record calls a quantity, and what the result calls it.
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


def _measured(document: Mapping[str, Any], device: str, which: str) -> Record:
    """Return latency, energy and memory of one of both models; None where not measured."""

    def of(quantity: str) -> Any:
        return document.get(quantity, {}).get(device, {}).get(which)

    latency = of("latency_ms") or {}
    return {
        "p50_ms": latency.get("p50"),
        "energy_mj": of("energy_mj"),
        "peak_memory_mb": of("memory_mb"),
    }


def overview(results: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[Record]:
    """Return the records of all variants: by network, device and CPU, originals first.

    An original, in float32 or int8, is measured beside every variant: its record is the median of
    these. Of a search and the trial that it took, which are one network, the search stays.

    Milliseconds of different CPUs are never compared: where a device of one name had several, each
    has its own originals and its own front.

    Each record has its `relative_latency`, a share of the float32 original's. It comes from ratios
    of alternating runs alone: medians of runs at different times differ by what else the machine
    did. Each record also has, as `on_front_by_latency` and `on_front_by_macs`, whether no other
    network of its model (device and CPU) is as accurate at a lower cost.

    Parameters
    ----------
    results
        Model, method and result of each variant.
    """
    results = list(results)
    taken = {
        (model, trial_name(method, result["search"]["taken"]))
        for model, method, result in results
        if "search" in result
    }
    originals: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    variants: dict[tuple[str, ...], list[Record]] = {}
    for model, method, result in results:
        if (model, method) in taken:
            continue
        for record in records_of(model, method, result):
            place = place_of(record)
            if record["method"] == ORIGINAL:
                by_precision = originals.setdefault(place, {})
                by_precision.setdefault(record["precision"], []).append(record)
            else:
                variants.setdefault(place, []).append(record)
    found = []
    for place, by_precision in originals.items():
        records = [*map(_median_of, by_precision.values()), *variants[place]]
        control = next((each for each in records if _is_control(each)), None)
        for each in records:
            each["relative_latency"] = _relative_latency(each, control)
        for name, cost in (("latency", "relative_latency"), ("macs", "macs")):
            front = pareto_front([(each[cost], each["top1_percent"]) for each in records])
            for index, each in enumerate(records):
                each[f"on_front_by_{name}"] = index in front
        found += records
    return found


def _is_control(record: Record) -> bool:
    return record["method"] == ORIGINAL and record["precision"] == "int8"


def _relative_latency(record: Record, control: Record | None) -> float | None:
    """Return the latency as a share of the float32 original's; None where it was not measured.

    An int8 network was measured against the control, too. It is placed by that ratio, so that it
    lies on the side of the control on which alternating runs of the two found it.
    """
    if record["method"] == ORIGINAL and record["precision"] == "float32":
        return 1.0 if record["p50_ms"] else None
    speedup, over_control = record["speedup"], record["speedup_over_control"]
    if record["precision"] == "int8" and over_control and control and control["speedup"]:
        speedup = over_control * control["speedup"]
    return 1 / speedup if speedup else None


def place_of(record: Record) -> tuple[str, str, str | None]:
    """Return what records must share for their milliseconds to be compared."""
    return record["network"], record["device"], record["cpu"]


# Of an original, beside each variant.
_MEASURED_EACH_TIME = (
    *("p50_ms", "original_p50_ms", "speedup", "speedup_low", "speedup_high"),
    *("energy_mj", "peak_memory_mb"),
)


def _median_of(measured: Sequence[Record]) -> Record:
    merged = dict(measured[0])
    for key in _MEASURED_EACH_TIME:
        values = [each[key] for each in measured if each[key] is not None]
        merged[key] = median(values) if values else None
    return merged


def pareto_front(points: Sequence[tuple[float | None, float]]) -> set[int]:
    """Which points, (cost, accuracy), no other one beats: cheaper and as accurate, or better.

    A point without a cost is on no front.
    """
    known = [(cost, -accuracy, index) for index, (cost, accuracy) in enumerate(points) if cost]
    front, best = set(), float("-inf")
    for _, lost, index in sorted(known):
        if -lost > best:
            front.add(index)
            best = -lost
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

# What the table's columns mean: a line each.
_LEGEND = (
    "Top-1 is on the test images; *lost* is in points, against the original in float32. "
    "The original in int8 is the control: what one line of ONNX Runtime gives without any "
    "compression.",
    "*Latency* is the median over all runs of one network, *original beside it* that of the "
    "original in float32 in the same alternating runs. *Faster* is the median of the ratios of "
    "both, one for each pair of runs, so it differs a little from the quotient of the two medians.",
    "*Faster than int8 original* is measured in alternating runs of these two, where both are "
    "in int8; otherwise it is the quotient of their speed-ups over the original in float32.",
    "An original's own row holds the medians of what was measured beside each variant.",
    "*Share of the original's latency* comes from these ratios alone, int8 networks by way of the "
    "control: medians of runs at different times do not compare.",
    "*Best at its latency*: no network of the same original, device and CPU is as accurate at a "
    "smaller share.",
)


def legend(records: Sequence[Record]) -> list[str]:
    """Return what a reader of the table must know, as paragraphs with *names* of columns."""
    cpus = cpus_of(records)
    named = [f"{device}: {', '.join(each)}" for device, each in cpus.items() if each]
    lines = [*_LEGEND, *([f"CPU of each device: {'; '.join(named)}."] if named else [])]
    if _cpus_differ(records):
        lines.append(
            "Warning: rows of one device were measured on different CPUs. Compare milliseconds and "
            "speed-ups only between rows of the same CPU."
        )
    return lines


def cpus_of(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the CPUs that measured, by the name of the device."""
    found: dict[str, dict[str, None]] = {}
    for each in records:
        of_device = found.setdefault(each["device"], {})
        if each["cpu"]:
            of_device[each["cpu"]] = None
    return {device: list(names) for device, names in found.items()}


def _cpus_differ(records: Sequence[Record]) -> bool:
    return any(len(names) > 1 for names in cpus_of(records).values())


def markdown(records: Sequence[Record]) -> str:
    """Return the records as a Markdown page, without columns that hold nothing."""
    headings, *rows = _cells(records)
    lines = [headings, ["---"] * len(headings), *rows]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return "\n\n".join([f"# {TITLE}", *legend(records), table])


def html(records: Sequence[Record]) -> str:
    """Return the same as a page for a browser."""
    headings, *rows = _cells(records)
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in headings)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows]
    paragraphs = [re.sub(r"\*(.+?)\*", r"<em>\1</em>", escape(line)) for line in legend(records)]
    return _PAGE.format(
        title=TITLE,
        legend="\n".join(f"<p>{each}</p>" for each in paragraphs),
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
    """A row of headings and one for each record, without columns that say nothing.

    The CPU is named in the legend where each device has one.
    """
    columns = [key for key in _HEADINGS if any(each[key] is not None for each in records)]
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
