"""Bring what was measured of one variant together: the result, and the tables of its plots."""

import itertools
from pathlib import Path
from typing import Any

import click

from lowrank.core.layers import Layer, LayerTable, sequence_macs, sequence_parameters
from lowrank.core.plans import Factored, Plan, PlannedLayer
from lowrank.core.stored import read_header
from lowrank.errors import UserError
from lowrank.factorize import get_factorization, one_group
from lowrank.files import read_json, write_json
from lowrank.onnx_files.int8_files import accuracy_of, all_files, main_record, read_report
from lowrank.report.card import deliver
from lowrank.report.headline import at, headline
from lowrank.report.layer_times import times_by_layer
from lowrank.report.provenance import stamp
from lowrank.report.targets import CONTROL, best_for_latency, best_of_search
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_path, input_paths, output_path, parameter


@click.command(cls=Step)
@input_path("table", "Layer table of the network, JSON.")
@input_path("original", "Accuracy of the original, JSON.")
@input_path("original_export", "Report of the original's export, JSON.")
@input_path("export", "Report of the compressed network's export, JSON.")
@input_path("state", "The compressed network, safetensors.")
@input_paths("plans", "Plan of every round, JSON.")
@input_paths("round_metrics", "Accuracy of every round, JSON.")
@input_paths("round_curves", "Training curve of every round, JSON.")
@input_paths("round_timings", "Steps and seconds of every round, JSON.")
@input_path("model", "The compressed network, ONNX.")
@input_path("quantized", "Folder of the quantize step; empty: float alone.", optional=True)
@input_path("control", "Such a folder of the original.")
@input_path("search", "Report of the settle step, JSON; empty: no search.", optional=True)
@input_paths("benchmarks", "One for each device, JSON.")
@parameter("described", "What the card states, JSON.", Json())
@output_path("delivered", "Folder of what to take away.")
@output_path("result", "Nested scalars, JSON.")
@output_path("metrics", "Metrics, JSON.")
@output_path("layers", "A record a layer, JSON.")
@output_path("times", "A record a layer, JSON.")
@output_path("curve", "A record a point, JSON.")
def summarize(
    table: Path,
    original: Path,
    original_export: Path,
    export: Path,
    state: Path,
    plans: list[Path],
    round_metrics: list[Path],
    round_curves: list[Path],
    round_timings: list[Path],
    model: Path,
    quantized: Path | None,
    control: Path,
    search: Path | None,
    benchmarks: list[Path],
    described: dict[str, Any],
    delivered: Path,
    result: Path,
    metrics: Path,
    layers: Path,
    times: Path,
    curve: Path,
) -> None:
    """Bring what was measured of one variant together."""
    accuracies, curves, timings = (
        [read_json(path) for path in paths]
        for paths in (round_metrics, round_curves, round_timings)
    )
    before, after = read_json(original_export), read_json(export)
    measured = {path.stem: _measurement(path) for path in benchmarks}
    of_original = read_json(original)
    original_accuracy = of_original["accuracy"]
    # Of several rounds the last: before its training, and after. Without any the original is left.
    last = accuracies[-1]["accuracy"] if accuracies else {}
    measured_accuracy = {
        "original": original_accuracy,
        **{what: last.get(what, original_accuracy) for what in ("decomposed", "finetuned")},
    }
    document = {
        "accuracy": {
            **_accuracy(measured_accuracy, "test"),
            "exported": after["accuracy"]["top1"],
            "validation": _accuracy(measured_accuracy, "validation"),
            **_top5(measured_accuracy, after["accuracy"]),
        },
        **{
            quantity: _before_after(before["counts"][quantity], after["counts"][quantity])
            for quantity in ("parameters", "macs", "size_bytes")
        },
        **_on_devices(measured),
        "environment": {device: values["environment"] for device, values in measured.items()},
        "rounds": len(timings),
        "finetune": {
            "steps": sum(timing["steps"] for timing in timings),
            "seconds": round(sum(timing["seconds"] for timing in timings), 1),
        },
        "export": {
            "max_abs_error": after["check"]["max_abs_error"],
            "relative_error": after["check"]["relative_error"],
        },
        **stamp(str(result), described["configuration"], f"{delivered}/params.yaml"),
    }
    tried = [each for path in plans if (each := Plan.read(path).expected)]
    if tried:
        # Of several rounds the last, as above.
        document["accuracy"]["validation"]["expected"] = tried[-1].after
        say(f"expected before fine-tuning: {tried[-1].after:.2f} % of {tried[-1].images} images")
    if missing := sorted({type_ for each in (before, after) for type_ in _not_counted(each)}):
        document["macs"]["not_counted"] = ", ".join(missing)
        say(f"warning: the MACs leave out {', '.join(missing)}, which cannot be counted")
    # Which images choices were made on, whether these can be trusted, and which are reported.
    document |= {key: of_original[key] for key in ("validation", "reported") if key in of_original}
    if warning := document.get("validation", {}).get("warning"):
        say(f"warning: {warning}")
    size_bytes = before["counts"]["size_bytes"]
    if quantized:
        document["int8"] = _quantized(read_report(quantized), measured, "int8", size_bytes)
    document["control"] = {
        "int8": _quantized(read_report(control), measured, "control.int8", size_bytes)
    }
    for place in ("int8", "control.int8"):
        if at(document, f"{place}.within_tolerance") is False:
            say(f"warning: {place} loses more validation accuracy than `quantize.tolerance` allows")
    if search:
        found = read_json(search)
        document["search"] = found | best_of_search(found, document)
    elif quantized and (target := at(described["method"], "ranks.target.latency_ms")):
        document["target"] = best_for_latency(target, document)
    answer = document.get("search") or document.get("target") or {}
    control_is_best = answer.get("best") == CONTROL
    network = LayerTable.from_json(read_json(table))
    planned = {layer.name: layer for path in plans for layer in Plan.read(path).layers}
    header = read_header(state)
    factored = {name: Factored.from_json(each) for name, each in header["factored"].items()}
    of_layers = [
        _layer_record(layer, planned.get(layer.name), factored.get(layer.name))
        for layer in network.layers
    ]
    deliver(
        delivered,
        {"float32": model}
        | _int8_models(quantized)
        | (_int8_models(control, "control_int8") if control_is_best else {}),
        document,
        described | {"network": header["network"], "input": header["spec"]},
        of_layers,
    )
    write_json(layers, of_layers)
    write_json(
        times,
        [
            {"device": device} | record
            for device, each in measured.items()
            for record in times_by_layer(network, factored, **each["layers_ms"])
        ],
    )
    write_json(curve, _joined(curves, timings))
    write_json(metrics, headline(document))
    write_json(result, document)
    accuracy = document["accuracy"]
    say(
        f"{accuracy['original']:.2f} % -> {accuracy['exported']:.2f} % top-1, "
        f"{document['macs']['ratio']:.2f}x fewer MACs, {document['size_bytes']['ratio']:.2f}x "
        f"smaller, {_faster(document['latency_ms'])}"
    )
    if quantized:
        eight = document["int8"]
        say(
            f"int8: {eight['accuracy']['exported']:.2f} % top-1, "
            f"{eight['size_bytes']['ratio']:.2f}x smaller, {_faster(eight['latency_ms'])}"
        )
    plain = document["control"]["int8"]
    say(
        f"the original in int8: {plain['accuracy']['exported']:.2f} % top-1, "
        f"{plain['size_bytes']['ratio']:.2f}x smaller, {_faster(plain['latency_ms'])}"
    )
    if control_is_best:
        say(
            "the original in int8 is the answer to the target, and is delivered beside the "
            f"compressed network as {described['name']}_control_int8.onnx: {answer['reason']}"
        )
    elif answer:
        say(f"the compressed network is the answer to the target: {answer['reason']}")


def _not_counted(export: dict[str, Any]) -> list[str]:
    """Types of operators that the count of MACs leaves out, from a report of an export."""
    return export["counts"].get("not_counted", [])


def _measurement(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not {"layers_ms", "control"} <= document.keys():
        raise UserError(
            f"{path}: measured by an earlier version of lowrank. Delete it and run the same "
            "command again."
        )
    return document


def _on_devices(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
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


def _checks(measured: dict[str, dict[str, Any]]) -> list[str]:
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


def _quantized(
    report: dict[str, Any],
    measured: dict[str, dict[str, Any]],
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


def _int8_models(folder: Path | None, name: str = "int8") -> dict[str, Path]:
    """Return the int8 files by what follows the variant's name in theirs; none without a folder.

    The main one is `int8`, those of other kinds of hardware `int8_s8` and so on.
    """
    if not folder:
        return {}
    main, *others = all_files(folder)
    return {name: main} | {f"{name}_{path.stem}": path for path in others}


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


def _joined(
    curves: list[list[dict[str, Any]]], timings: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The curves of all rounds, with steps counted through."""
    before = [0, *itertools.accumulate(timing["steps"] for timing in timings)]
    return [
        {**point, "step": point["step"] + start}
        for points, start in zip(curves, before[:-1], strict=True)
        for point in points
    ]


def _ranks(layer: Layer, factored: Factored | None) -> dict[str, str]:
    """The ranks of a layer, their names, and the largest that there could be; empty if dense."""
    if factored is None:
        return {"ranks": "", "rank_names": "", "full_ranks": ""}
    method = get_factorization(factored.factorization)
    listed = {
        "ranks": factored.ranks,
        "rank_names": method.rank_names,
        "full_ranks": method.full_ranks(one_group(layer)),
    }
    return {key: " x ".join(map(str, each)) for key, each in listed.items()}


def _before_after(original: int, compressed: int) -> dict[str, float]:
    return {
        "original": original,
        "compressed": compressed,
        "ratio": round(original / compressed, 4),
    }


def _percentiles(latency: dict[str, float]) -> dict[str, float]:
    return {name: latency[name] for name in ("p50", "p90", "p99")}


def _layer_record(
    layer: Layer, planned: PlannedLayer | None, factored: Factored | None
) -> dict[str, Any]:
    """One row of the layer table: the same scalar columns for every layer, dense or not."""
    if planned is None:
        because = layer.not_factored or "the method leaves this layer dense"
    else:
        because = planned.dense_because
    parameters, macs = layer.parameters, layer.dense_macs
    if factored:
        parameters = sequence_parameters(factored.sequence)
        macs = sequence_macs(factored.sequence, layer.input_map)
    return {
        "layer": layer.name,
        "form": factored.factorization if factored else "dense",
        **_ranks(layer, factored),
        "parameters_original": layer.parameters,
        "parameters_compressed": parameters,
        "macs_original": layer.dense_macs,
        "macs_compressed": macs,
        "macs_ratio": round(layer.dense_macs / macs, 4),
        "relative_error": round(factored.relative_error, 6) if factored else 0.0,
        "notes": "; ".join([*([because] if because else []), *(planned.notes if planned else ())]),
    }


if __name__ == "__main__":
    summarize()
