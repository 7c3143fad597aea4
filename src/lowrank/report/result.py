"""Build the result of a variant: nested scalars from the measurements of its steps."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank.core.metric import Metric
from lowrank.core.plans import Plan
from lowrank.onnx_files.int8_files import accuracy_of, main_record
from lowrank.report.headline import at
from lowrank.report.targets import CONTROL, best_for_latency, best_of_search

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Measurements:
    """The documents that the steps of a variant wrote.

    Parameters
    ----------
    metric
        Main metric of the task, whose values are under `accuracy` in the result.
    original
        Accuracy of the original network, and the images on which it was measured.
    original_export, export
        Reports of the export of the original and of the compressed network.
    accuracies, curves, timings
        Accuracy, training curve and timing of each round.
    plans
        Plan of each round.
    devices
        Measurements of each device, by its name.
    int8
        Report of the quantized network, or None if the method delivers only float32.
    control
        Report of the quantized original.
    search
        Report of the search for a target of `accuracy_drop`, or None without such a target.
    method
        The method, as the model card states it.
    """

    metric: Metric
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
    """Return the result of a variant.

    Parameters
    ----------
    measured
        The documents that the steps wrote.
    origin
        The identification of the result: commit, version, configuration, command.
    """
    before, after = measured.original_export, measured.export
    document: dict[str, Any] = {
        "accuracy": _accuracies(measured),
        **{
            quantity: _before_after(before["counts"][quantity], after["counts"][quantity])
            for quantity in ("parameters", "macs", "size_bytes")
        },
        **_on_devices(measured.devices),
        "environment": {name: values["environment"] for name, values in measured.devices.items()},
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
    if missing := sorted({type_ for export in (before, after) for type_ in _not_counted(export)}):
        document["macs"]["not_counted"] = ", ".join(missing)
    # The images on which choices were made, with a warning about them, and the reported images.
    image_keys = ("validation", "reported")
    document |= {key: measured.original[key] for key in image_keys if key in measured.original}
    size_bytes = before["counts"]["size_bytes"]
    if measured.int8:
        document["int8"] = _quantized(measured, measured.int8, "int8", size_bytes)
    document["control"] = {
        "int8": _quantized(measured, measured.control, "control.int8", size_bytes)
    }
    if measured.search:
        document["search"] = dict(measured.search) | best_of_search(
            measured.search, document, measured.metric
        )
    elif measured.int8 and (target := at(measured.method, "ranks.target.latency_ms")):
        document["target"] = best_for_latency(target, document, measured.metric)
    return document


def control_is_best(result: Document) -> bool:
    """Return whether the original in int8 is the answer to the target of a variant."""
    return _answer(result).get("best") == CONTROL


def curve_of(measured: Measurements) -> list[dict[str, Any]]:
    """Return the curves of all rounds as one curve. Steps are counted over all rounds."""
    steps = itertools.accumulate(timing["steps"] for timing in measured.timings)
    return [
        {**point, "step": point["step"] + start}
        for points, start in zip(measured.curves, [0, *steps][: len(measured.curves)], strict=True)
        for point in points
    ]


def remarks(measured: Measurements, result: Document) -> list[str]:
    """Return the remarks and warnings that a user must read with a result, one per line."""
    lines = []
    if expected := _expected(measured):
        lines.append(
            f"expected before fine-tuning: {measured.metric.text(expected.after)} on "
            f"{expected.images} images"
        )
    if missing := result["macs"].get("not_counted"):
        lines.append(f"warning: the MACs do not include {missing}, which cannot be counted")
    if warning := at(result, "validation.warning"):
        lines.append(f"warning: {warning}")
    lines += [
        f"warning: {place} loses more validation {measured.metric.noun} than `quantize.tolerance` "
        "allows"
        for place in ("int8", "control.int8")
        if at(result, f"{place}.within_tolerance") is False
    ]
    return lines


def summary(result: Document, metric: Metric, name: str) -> list[str]:
    """Return the main figures of a result, a line for each of its networks.

    `metric` is the main metric of the task, and `name` the name of the variant.
    """
    accuracy, macs, control = result["accuracy"], result["macs"], result["control"]["int8"]
    lines = [
        f"{metric.text(accuracy['original'])} -> {metric.text(accuracy['exported'])} "
        f"{metric.name}, "
        f"{macs['ratio']:.2f}x fewer MACs, {result['size_bytes']['ratio']:.2f}x smaller, "
        f"{_speedups(result['latency_ms'])}"
    ]
    if "int8" in result:
        lines.append(f"int8: {_int8_figures(result['int8'], metric)}")
    lines.append(f"the original in int8: {_int8_figures(control, metric)}")
    answer = _answer(result)
    if control_is_best(result):
        lines.append(
            "the original in int8 is the answer to the target. It is delivered next to the "
            f"compressed network as {name}_control_int8.onnx. Reason: {answer['reason']}"
        )
    elif answer:
        lines.append(
            f"the compressed network is the answer to the target. Reason: {answer['reason']}"
        )
    return lines


def _answer(result: Document) -> dict[str, Any]:
    """Return the answer to the target of the method, or an empty dict without a target."""
    return result.get("search") or result.get("target") or {}


def _int8_figures(document: Document, metric: Metric) -> str:
    return (
        f"{metric.text(document['accuracy']['exported'])} {metric.name}, "
        f"{document['size_bytes']['ratio']:.2f}x smaller, {_speedups(document['latency_ms'])}"
    )


def _expected(measured: Measurements) -> Any:
    """Return the expected accuracy of the last round whose ranks were evaluated, or None."""
    expectations = [plan.expected for plan in measured.plans if plan.expected]
    return expectations[-1] if expectations else None


def _accuracies(measured: Measurements) -> dict[str, Any]:
    """Return the metrics on both splits of the original, the last round and the ONNX file."""
    original = measured.original["accuracy"]
    exported = measured.export["accuracy"]
    # The last round, before and after its training. Without rounds, the original is unchanged.
    last = measured.accuracies[-1]["accuracy"] if measured.accuracies else {}
    accuracy_by_state = {
        "original": original,
        **{state: last.get(state, original) for state in ("decomposed", "finetuned")},
    }
    main = measured.metric.key

    def by_state(name: str) -> dict[str, float]:
        return {state: values[name] for state, values in accuracy_by_state.items()}

    def on_both(key: str) -> dict[str, Any]:
        suffix = "" if key == main else f"_{key}"
        return {
            **by_state(f"test{suffix}"),
            "exported": exported[key],
            "validation": by_state(f"validation{suffix}"),
        }

    return on_both(main) | {key: on_both(key) for key in exported if key != main}


def _before_after(original: int, compressed: int) -> dict[str, float]:
    return {
        "original": original,
        "compressed": compressed,
        "ratio": round(original / compressed, 4),
    }


def _not_counted(export: Document) -> list[str]:
    """Return the operator types that the MACs of an export do not include, from its report."""
    return export["counts"].get("not_counted", [])


def _on_devices(measured: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return latency, memory, energy and conditions by device, or why they were not measured."""
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
    """Return the checks that were made on the devices: outputs, and kernels of int8 files."""
    return [
        quantity
        for quantity in ("agreement", "integer_kernels")
        if any(quantity in values for values in measured.values())
    ]


def _latency(values: dict[str, Any]) -> dict[str, Any]:
    """Return the latencies on one device. `others` holds those with other settings.

    Those of another runtime also hold its name and version, and the comparison of the outputs.
    """
    if "not_measured" in values:
        return values
    latency: dict[str, Any] = {
        model: _percentiles(values[model]) for model in ("original", "compressed")
    }
    latency |= {name: value for name, value in values.items() if name.startswith("speedup")}
    if "others" in values:
        latency["others"] = {
            name: _latency(other) | _of_other_runtime(other, values)
            for name, other in values["others"].items()
        }
    if "fastest_runtime" in values:
        latency["fastest_runtime"] = values["fastest_runtime"]
    return latency


def _of_other_runtime(other: dict[str, Any], main: dict[str, Any]) -> dict[str, Any]:
    """Return the runtime of a measurement and its checks; empty for the runtime of the main one."""
    environments = [values.get("environment", {}) for values in (other, main)]
    runtime, main_runtime = (environment.get("runtime") for environment in environments)
    if runtime == main_runtime:
        return {}
    return {
        "runtime": runtime,
        "runtime_version": environments[0]["runtime_version"],
        **{key: other[key] for key in ("agreement", "integer_kernels") if key in other},
    }


def _percentiles(latency: dict[str, float]) -> dict[str, float]:
    return {name: latency[name] for name in ("p50", "p90", "p99")}


def _quantized(
    measured: Measurements,
    report: Document,
    place: str,
    original_bytes: int,
) -> dict[str, Any]:
    """Return the figures of a quantized network, under the same keys as in the result.

    `place` is its key in the measurements of a device: `int8` or `control.int8`.
    """
    main, devices = main_record(report), measured.devices.items()
    return {
        "accuracy": accuracy_of(main["accuracy"], measured.metric),
        "size_bytes": _before_after(original_bytes, main["size_bytes"]),
        **_on_devices({device: _in_int8(values, place) for device, values in devices}),
        "nodes": main["nodes"],
        "kept_in_float": len(main["kept_in_float"]),
        "within_tolerance": all(file["within_tolerance"] for file in report["files"].values()),
        # The file that each device runs, and the figures of each file. The main file is the first.
        "devices": report["devices"],
        "files": {
            name: {
                "activations": file["activations"],
                "reduce_range": file["reduce_range"],
                "accuracy": accuracy_of(file["accuracy"], measured.metric),
                "size_bytes": file["size_bytes"],
                "kept_in_float": len(file["kept_in_float"]),
                "within_tolerance": file["within_tolerance"],
            }
            for name, file in report["files"].items()
        },
    }


def _in_int8(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a device's measurements of an int8 network, including those with other settings."""
    measured = at(values, place)
    if "others" in values and "not_measured" not in measured:
        others = {name: at(other, place) for name, other in values["others"].items()}
        measured = measured | {"others": others}
    return measured


def _speedups(latency_ms: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{values['speedup']:.2f}x faster on {device}"
        if "speedup" in values
        else f"not measured on {device}"
        for device, values in latency_ms.items()
    )
