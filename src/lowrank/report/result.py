"""The result of a variant: nested scalars, from what its steps measured."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank.core.plans import Plan
from lowrank.onnx_files.int8_files import accuracy_of, main_record
from lowrank.report.headline import at
from lowrank.report.targets import CONTROL, best_for_latency, best_of_search

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Measurements:
    """What the steps of a variant wrote.

    Parameters
    ----------
    original
        Accuracy of the original network, and which images were measured.
    original_export, export
        Reports of both exports.
    accuracies, curves, timings
        Of every round.
    plans
        Of every round.
    devices
        What each device measured, by its name.
    int8
        Report of the quantized network; None where the method delivers float alone.
    control
        Report of the quantized original.
    search
        Report of a search for a target of accuracy; None without one.
    method
        The method, as its card states it.
    """

    original: Document
    original_export: Document
    export: Document
    accuracies: Sequence[Document]
    curves: Sequence[Sequence[Document]]
    timings: Sequence[Document]
    plans: Sequence[Plan]
    devices: Mapping[str, dict[str, Any]]
    int8: Document | None
    control: Document
    search: Document | None
    method: Document


def result_of(measured: Measurements, origin: Document) -> dict[str, Any]:
    """Return the result.

    Parameters
    ----------
    measured
        What the steps wrote.
    origin
        What identifies the result: commit, version, configuration, command.
    """
    before, after = measured.original_export, measured.export
    document: dict[str, Any] = {
        "accuracy": _accuracies(measured),
        **{
            quantity: _before_after(before["counts"][quantity], after["counts"][quantity])
            for quantity in ("parameters", "macs", "size_bytes")
        },
        **_on_devices(measured.devices),
        "environment": {name: each["environment"] for name, each in measured.devices.items()},
        "rounds": len(measured.timings),
        "finetune": {
            "steps": sum(timing["steps"] for timing in measured.timings),
            "seconds": round(sum(timing["seconds"] for timing in measured.timings), 1),
        },
        "export": {name: after["check"][name] for name in ("max_abs_error", "relative_error")},
        **origin,
    }
    if expected := _expected(measured):
        document["accuracy"]["validation"]["expected"] = expected.after
    if missing := sorted({type_ for each in (before, after) for type_ in _not_counted(each)}):
        document["macs"]["not_counted"] = ", ".join(missing)
    # Which images choices were made on, whether these can be trusted, and which are reported.
    images = ("validation", "reported")
    document |= {key: measured.original[key] for key in images if key in measured.original}
    size_bytes = before["counts"]["size_bytes"]
    if measured.int8:
        document["int8"] = _quantized(measured.int8, measured.devices, "int8", size_bytes)
    document["control"] = {
        "int8": _quantized(measured.control, measured.devices, "control.int8", size_bytes)
    }
    if measured.search:
        document["search"] = dict(measured.search) | best_of_search(measured.search, document)
    elif measured.int8 and (target := at(measured.method, "ranks.target.latency_ms")):
        document["target"] = best_for_latency(target, document)
    return document


def control_is_best(result: Document) -> bool:
    """Whether the original in int8 is the answer to the target of a variant."""
    return _answer(result).get("best") == CONTROL


def curve_of(measured: Measurements) -> list[dict[str, Any]]:
    """Return the curves of all rounds as one, with steps counted through."""
    steps = itertools.accumulate(timing["steps"] for timing in measured.timings)
    return [
        {**point, "step": point["step"] + start}
        for points, start in zip(measured.curves, [0, *steps][: len(measured.curves)], strict=True)
        for point in points
    ]


def remarks(measured: Measurements, result: Document) -> list[str]:
    """Return what a user must know of a result beside its figures, a line each."""
    lines = []
    if expected := _expected(measured):
        lines.append(
            f"expected before fine-tuning: {expected.after:.2f} % of {expected.images} images"
        )
    if missing := result["macs"].get("not_counted"):
        lines.append(f"warning: the MACs leave out {missing}, which cannot be counted")
    if warning := at(result, "validation.warning"):
        lines.append(f"warning: {warning}")
    lines += [
        f"warning: {place} loses more validation accuracy than `quantize.tolerance` allows"
        for place in ("int8", "control.int8")
        if at(result, f"{place}.within_tolerance") is False
    ]
    return lines


def summary(result: Document, name: str) -> list[str]:
    """Return the main figures of a result, a line for each network that it holds.

    `name` is that of the variant.
    """
    accuracy, macs, control = result["accuracy"], result["macs"], result["control"]["int8"]
    lines = [
        f"{accuracy['original']:.2f} % -> {accuracy['exported']:.2f} % top-1, "
        f"{macs['ratio']:.2f}x fewer MACs, {result['size_bytes']['ratio']:.2f}x smaller, "
        f"{_faster(result['latency_ms'])}"
    ]
    if "int8" in result:
        lines.append(f"int8: {_int8_figures(result['int8'])}")
    lines.append(f"the original in int8: {_int8_figures(control)}")
    answer = _answer(result)
    if control_is_best(result):
        lines.append(
            "the original in int8 is the answer to the target, and is delivered beside the "
            f"compressed network as {name}_control_int8.onnx: {answer['reason']}"
        )
    elif answer:
        lines.append(f"the compressed network is the answer to the target: {answer['reason']}")
    return lines


def _answer(result: Document) -> dict[str, Any]:
    """What was found for a target; empty for a method without one."""
    return result.get("search") or result.get("target") or {}


def _int8_figures(document: Document) -> str:
    return (
        f"{document['accuracy']['exported']:.2f} % top-1, "
        f"{document['size_bytes']['ratio']:.2f}x smaller, {_faster(document['latency_ms'])}"
    )


def _expected(measured: Measurements) -> Any:
    """What was expected of the ranks of the last round that were tried; None without one."""
    tried = [plan.expected for plan in measured.plans if plan.expected]
    return tried[-1] if tried else None


def _accuracies(measured: Measurements) -> dict[str, Any]:
    """Accuracy on both splits: of the original, of the last round, and of the ONNX file."""
    original = measured.original["accuracy"]
    exported = measured.export["accuracy"]
    # Of several rounds the last: before its training, and after. Without any the original is left.
    last = measured.accuracies[-1]["accuracy"] if measured.accuracies else {}
    found = {
        "original": original,
        **{what: last.get(what, original) for what in ("decomposed", "finetuned")},
    }
    return {
        **_accuracy(found, "test"),
        "exported": exported["top1"],
        "validation": _accuracy(found, "validation"),
        **_top5(found, exported),
    }


def _accuracy(measured: dict[str, dict[str, float]], split: str) -> dict[str, float]:
    """Accuracy on one split, by what was measured."""
    return {what: accuracy[split] for what, accuracy in measured.items()}


def _top5(measured: dict[str, dict[str, float]], exported: dict[str, float]) -> dict[str, Any]:
    """Top-5 on both splits, where there are over ten classes."""
    if "top5" not in exported:
        return {}
    return {
        "top5": {
            **_accuracy(measured, "test_top5"),
            "exported": exported["top5"],
            "validation": _accuracy(measured, "validation_top5"),
        }
    }


def _before_after(original: int, compressed: int) -> dict[str, float]:
    return {
        "original": original,
        "compressed": compressed,
        "ratio": round(original / compressed, 4),
    }


def _not_counted(export: Document) -> list[str]:
    """Types of operators that the count of MACs leaves out, from a report of an export."""
    return export["counts"].get("not_counted", [])


def _on_devices(measured: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Latencies, memory, energy and conditions by device, or why they were not measured."""
    return {
        "latency_ms": {device: _latency(values) for device, values in measured.items()},
        **{
            quantity: {
                device: values[quantity]
                for device, values in measured.items()
                if quantity in values
            }
            for quantity in ("memory_mb", "energy_mj", "conditions", *_checks(measured))
        },
    }


def _checks(measured: Mapping[str, dict[str, Any]]) -> list[str]:
    """What was checked of the files on the devices: answers, and the kernels of int8 files."""
    return [
        quantity
        for quantity in ("agreement", "integer_kernels")
        if any(quantity in values for values in measured.values())
    ]


def _latency(values: dict[str, Any]) -> dict[str, Any]:
    """Of one device, and under `others` by other settings of it."""
    if "not_measured" in values:
        return values
    found = {model: _percentiles(values[model]) for model in ("original", "compressed")}
    found |= {name: each for name, each in values.items() if name.startswith("speedup")}
    if "others" in values:
        found["others"] = {name: _latency(each) for name, each in values["others"].items()}
    return found


def _percentiles(latency: dict[str, float]) -> dict[str, float]:
    return {name: latency[name] for name in ("p50", "p90", "p99")}


def _quantized(
    report: Document,
    measured: Mapping[str, dict[str, Any]],
    place: str,
    original_bytes: int,
) -> dict[str, Any]:
    """Return what a quantized network is beside the original, under the keys of the whole result.

    `place` is where the measurements of a device hold it: `int8`, or `control.int8`.
    """
    main = main_record(report)
    return {
        "accuracy": accuracy_of(main["accuracy"]),
        "size_bytes": _before_after(original_bytes, main["size_bytes"]),
        **_on_devices({device: _in_int8(values, place) for device, values in measured.items()}),
        "nodes": main["nodes"],
        "kept_in_float": len(main["kept_in_float"]),
        "within_tolerance": all(each["within_tolerance"] for each in report["files"].values()),
        # Which file each device runs, and what is known of each: the first is the main one's.
        "devices": report["devices"],
        "files": {
            name: {
                "activations": each["activations"],
                "reduce_range": each["reduce_range"],
                "accuracy": accuracy_of(each["accuracy"]),
                "size_bytes": each["size_bytes"],
                "kept_in_float": len(each["kept_in_float"]),
                "within_tolerance": each["within_tolerance"],
            }
            for name, each in report["files"].items()
        },
    }


def _in_int8(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return what a device measured of a network in int8, with its other settings."""
    found = at(values, place)
    if "others" in values and "not_measured" not in found:
        others = {name: at(each, place) for name, each in values["others"].items()}
        found = found | {"others": others}
    return found


def _faster(latency_ms: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{values['speedup']:.2f}x faster on {device}"
        if "speedup" in values
        else f"not measured on {device}"
        for device, values in latency_ms.items()
    )
