"""Collect the measurements of one variant: its result, tables for plots, and delivered files."""

from pathlib import Path
from typing import Any

import click

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Factored, Plan
from lowrank.core.stored import read_header
from lowrank.errors import UserError
from lowrank.files import read_json, write_json
from lowrank.onnx_files.int8_files import all_files, read_report
from lowrank.report.card import deliver
from lowrank.report.headline import headline
from lowrank.report.layer_records import layer_records
from lowrank.report.layer_times import times_by_layer
from lowrank.report.provenance import stamp
from lowrank.report.result import (
    Measurements,
    control_is_best,
    curve_of,
    remarks,
    result_of,
    summary,
)
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    output_path,
    parameter,
    task_option,
)
from lowrank.tasks import get_task


@click.command(cls=Step)
@task_option
@input_path("table", "Layer table of the network, JSON.")
@input_path("original", "Accuracy of the original, JSON.")
@input_path("original_export", "Report of the original's export, JSON.")
@input_path("export", "Report of the compressed network's export, JSON.")
@input_path("state", "The compressed network, safetensors.")
@input_paths("plans", "Plan of each round, JSON.")
@input_paths("round_metrics", "Accuracy of each round, JSON.")
@input_paths("round_curves", "Training curve of each round, JSON.")
@input_paths("round_timings", "Steps and seconds of each round, JSON.")
@input_path("model", "The compressed network, ONNX.")
@input_path(
    "quantized", "Folder that the quantize step wrote; empty for float only.", optional=True
)
@input_path("control", "Folder that the quantize step wrote for the original.")
@input_path("search", "Report of the settle step, JSON; empty without a search.", optional=True)
@input_paths("benchmarks", "Measurements on each device, JSON.")
@parameter("described", "Facts for the model card, JSON.", Json())
@output_path("delivered", "Folder of the delivered ONNX files and model cards.")
@output_path("result", "The result as nested scalars, JSON.")
@output_path("metrics", "Metrics for DVC, JSON.")
@output_path("layers", "A record for each layer, JSON.")
@output_path("times", "A record for each device and layer, JSON.")
@output_path("curve", "A record for each point of the training curve, JSON.")
def summarize(
    task: str,
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
    """Collect the measurements of one variant."""
    layer_table = LayerTable.from_json(read_json(table))
    header = read_header(state)
    measured_task = get_task(task)
    measured = Measurements(
        metric=measured_task.metric,
        original=read_json(original),
        original_export=read_json(original_export),
        export=read_json(export),
        accuracies=[read_json(path) for path in round_metrics],
        curves=[read_json(path) for path in round_curves],
        timings=[read_json(path) for path in round_timings],
        plans=[Plan.read(path) for path in plans],
        devices={path.stem: _measurement(path) for path in benchmarks},
        int8=read_report(quantized) if quantized else None,
        control=read_report(control),
        search=read_json(search) if search else None,
        method=described["method"],
    )
    origin = stamp(str(result), described["configuration"], f"{delivered}/params.yaml")
    document = result_of(measured, origin)
    factored = {name: Factored.from_json(entry) for name, entry in header["factored"].items()}
    planned = {layer.name: layer for plan in measured.plans for layer in plan.layers}
    records = layer_records(layer_table, planned, factored)
    models = {"float32": model} | _int8_models(quantized)
    if control_is_best(document):
        models |= _int8_models(control, "control_int8")
    network = {"network": header["network"], "input": header["spec"]}
    deliver(delivered, models, document, described | network, records, measured_task.metrics)
    write_json(layers, records)
    write_json(
        times,
        [
            {"device": device} | record
            for device, values in measured.devices.items()
            for record in times_by_layer(layer_table, factored, **values["layers_ms"])
        ],
    )
    write_json(curve, curve_of(measured))
    write_json(metrics, headline(document))
    write_json(result, document)
    for line in [
        *remarks(measured, document),
        *summary(document, measured.metric, described["name"]),
    ]:
        say(line)


def _measurement(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not {"layers_ms", "control"} <= document.keys():
        raise UserError(
            f"{path}: this file was written by an earlier version of lowrank. Delete it and run "
            "the same command again."
        )
    return document


def _int8_models(folder: Path | None, name: str = "int8") -> dict[str, Path]:
    """Return the int8 files by the suffix of their delivered names; empty without a folder.

    The main file has the suffix `int8`. Files for other hardware have `int8_s8` and so on.
    """
    if not folder:
        return {}
    main, *others = all_files(folder)
    return {name: main} | {f"{name}_{path.stem}": path for path in others}


if __name__ == "__main__":
    summarize()
