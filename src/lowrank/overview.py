"""All variants side by side: a record for each, which of them are worth having, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from lowrank.params import trial_name

# The network as it was, among the methods.
ORIGINAL = "original"

Record = dict[str, Any]


def records_of(model: str, method: str, result: Mapping[str, Any]) -> list[Record]:
    """Of one result: a record for each device it was measured on, in float32 and in int8.

    Parameters
    ----------
    model, method
        Of the variant.
    result
        As the step `summarize` writes it.

    Returns
    -------
    list of dict
        Scalars, with their unit in their name; None where something was not measured. The first
        record of each device is that of the original network as it was measured there.
    """
    found = []
    networks = {"float32": result} | ({"int8": result["int8"]} if "int8" in result else {})
    for device in result["latency_ms"]:
        before = _record(model, ORIGINAL, "float32", device)
        before |= {
            "top1_percent": result["accuracy"]["original"],
            **{key: result[name]["original"] for key, name in _COUNTS.items()},
            **_measured(result, device, "original"),
        }
        found.append(before)
        for precision, document in networks.items():
            record = _record(model, method, precision, device)
            top1 = document["accuracy"]["exported"]
            record |= {
                "top1_percent": top1,
                "points_lost": round(result["accuracy"]["original"] - top1, 2),
                "finetune_steps": result["finetune"]["steps"],
                **_measured(document, device, "compressed"),
            }
            for key, name in _COUNTS.items():
                counted = document.get(name, result[name])
                record |= {key: counted["compressed"], f"{key}_ratio": counted["ratio"]}
            latency = document["latency_ms"][device]
            record |= {key: latency.get(key) for key in ("speedup", "speedup_low", "speedup_high")}
            found.append(record)
    return found


# What a record calls a quantity, and what the result calls it.
_COUNTS = {"macs": "macs", "parameters": "parameters", "onnx_bytes": "size_bytes"}

_COLUMNS = (
    *("network", "method", "precision", "device", "top1_percent", "points_lost"),
    *("p50_ms", "speedup", "speedup_low", "speedup_high"),
    *("macs", "macs_ratio", "parameters", "parameters_ratio", "onnx_bytes", "onnx_bytes_ratio"),
    *("energy_mj", "peak_memory_mb", "finetune_steps"),
)


def _record(model: str, method: str, precision: str, device: str) -> Record:
    named = {"network": model, "method": method, "precision": precision, "device": device}
    return dict.fromkeys(_COLUMNS) | named


def _measured(document: Mapping[str, Any], device: str, which: str) -> Record:
    """Latency, energy and memory of one of both models; None where the device did not tell."""

    def of(quantity: str) -> Any:
        return document.get(quantity, {}).get(device, {}).get(which)

    latency = of("latency_ms") or {}
    return {
        "p50_ms": latency.get("p50"),
        "energy_mj": of("energy_mj"),
        "peak_memory_mb": of("memory_mb"),
    }


def overview(results: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[Record]:
    """The records of all variants: network by network and device by device, originals first.

    An original is measured anew beside every variant: its record is the median of these. Of a
    search and the trial that it took, which are one network, the search stays.

    Each record has, as `on_front_by_latency` and `on_front_by_macs`, whether no other network of
    its model (and device) is as accurate at a lower cost.

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
    originals: dict[tuple[str, str], list[Record]] = {}
    variants: dict[tuple[str, str], list[Record]] = {}
    for model, method, result in results:
        if (model, method) in taken:
            continue
        for record in records_of(model, method, result):
            kind = originals if record["method"] == ORIGINAL else variants
            kind.setdefault((record["network"], record["device"]), []).append(record)
    found = []
    for place, measured in originals.items():
        records = [_median_of(measured), *variants[place]]
        for name, cost in (("latency", "p50_ms"), ("macs", "macs")):
            front = pareto_front([(each[cost], each["top1_percent"]) for each in records])
            for index, each in enumerate(records):
                each[f"on_front_by_{name}"] = index in front
        found += records
    return found


def _median_of(measured: Sequence[Record]) -> Record:
    merged = dict(measured[0])
    for key in ("p50_ms", "energy_mj", "peak_memory_mb"):
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
    "top1_percent": ("top-1, %", "{:.2f}"),
    "points_lost": ("lost", "{:.2f}"),
    "p50_ms": ("latency, ms", "{:.3f}"),
    "speedup": ("faster", "{:.2f}x"),
    "macs": ("MACs", "{:,}"),
    "macs_ratio": ("fewer", "{:.2f}x"),
    "onnx_bytes": ("ONNX file, bytes", "{:,}"),
    "onnx_bytes_ratio": ("smaller", "{:.1f}x"),
    "energy_mj": ("energy, mJ", "{:.2f}"),
    "on_front_by_latency": ("best at its latency", "{}"),
}


def markdown(records: Sequence[Record]) -> str:
    """The records as a Markdown table, without columns that hold nothing."""
    headings, *rows = _cells(records)
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def html(records: Sequence[Record]) -> str:
    """The same as a page for a browser."""
    headings, *rows = _cells(records)
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in headings)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows]
    return _PAGE.format(rows="\n".join(lines))


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>All variants</title>
<style>
  body {{ font: 14px sans-serif; margin: 1em; }}
  table {{ border-collapse: collapse; }}
  th, td {{ padding: 3px 9px; border-bottom: 1px solid #ccc; text-align: right; }}
  th:nth-child(-n+4), td:nth-child(-n+4) {{ text-align: left; }}
</style>
<table>
{rows}
</table>
"""


def _cells(records: Sequence[Record]) -> list[list[str]]:
    """A row of headings and one for each record, without columns that hold nothing."""
    columns = [key for key in _HEADINGS if any(each[key] is not None for each in records)]
    headings = [_HEADINGS[key][0] for key in columns]
    return [headings, *([_cell(key, record[key]) for key in columns] for record in records)]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return _HEADINGS[key][1].format(value)
