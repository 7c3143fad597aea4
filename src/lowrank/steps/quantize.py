"""Quantize an exported network to int8 for each kind of hardware, and measure the result."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.config.quantize import QuantizeSettings
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    output_path,
    parameter,
    task_option,
)

if TYPE_CHECKING:
    from lowrank.devices.processor import IntegerTypes
    from lowrank.evaluation.exported import ExportedNetworks
    from lowrank.onnx_files.int8 import Quantizer
    from lowrank.onnx_files.int8_search import Kept


@click.command(cls=Step)
@task_option
@input_path("model", "The network, ONNX.")
@input_path("state", "The network that was exported, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_paths("devices", "Descriptions of the devices, the main device first.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path(
    "ready", "Folder that this step wrote for the same network; empty for none.", optional=True
)
@parameter("kind", "methods.<method>.quantize; empty to do nothing.", default="")
@parameter("settings", "quantize, JSON.", Json(QuantizeSettings))
@parameter("connections", "Connection of each device by its name, JSON.", Json(), default="{}")
@output_path("folder", "Folder of an ONNX file for each kind of hardware, and report.json.")
def quantize(
    task: str,
    model: Path,
    state: Path,
    dataset: Path,
    devices: list[Path],
    splits: Path | None,
    ready: Path | None,
    kind: str,
    settings: QuantizeSettings,
    connections: dict[str, dict[str, Any]],
    folder: Path,
) -> None:
    """Quantize an exported network to int8 for each kind of hardware, and measure the result."""
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.int8_files import REPORT, TIMES, copy_folder

    report = folder / REPORT
    if not kind:
        # DVC requires this output for every method, quantized or not.
        write_json(report, {"kind": None})
        return
    if ready:
        # The method does not change the network, and the original is already quantized.
        copy_folder(ready, folder)
        say(f"the network is the original: copied its int8 files from {ready}")
        return

    use_threads(settings.threads)
    from lowrank.data.datasets import open_dataset
    from lowrank.devices.processor import Processor
    from lowrank.evaluation.exported import ExportedNetworks
    from lowrank.onnx_files.int8 import types_for
    from lowrank.surgery.states import read_spec
    from lowrank.tasks import get_task

    types = {
        path.stem: types_for(Processor.from_json(read_json(path)), settings) for path in devices
    }
    data = open_dataset(dataset, splits)
    with tempfile.TemporaryDirectory() as intermediate:
        in_runtime = ExportedNetworks(get_task(task), read_spec(state), settings.threads)
        job = _Job.start(model, in_runtime, data, settings, Path(intermediate))
        files, times = _write_all(job, types, connections, folder)
    if settings.by_time:
        write_json(folder / TIMES, times)
    write_json(
        report,
        {
            "kind": kind,
            "devices": {device: int8_types.file for device, int8_types in types.items()},
            "files": files,
            "float_accuracy": {"validation": job.before},
        },
    )


class _Inputs(Sequence[dict[str, Any]]):
    """The images of evaluation batches as inputs of the exported network, a batch at a time."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return {"images": self._batches[number][0].numpy()}


@dataclass(frozen=True)
class _Job:
    """The data that all int8 files of a network share.

    `before` is the metric of the network in float. `in_float` are its outputs in float for
    `sample`, images of the validation split.
    """

    model: Path
    in_runtime: "ExportedNetworks"
    data: Any
    settings: Any
    intermediate: Path
    quantizer: "Quantizer"
    before: dict[str, float]
    sample: Any
    in_float: Any

    @classmethod
    def start(
        cls,
        model: Path,
        in_runtime: "ExportedNetworks",
        data: Any,
        settings: Any,
        intermediate: Path,
    ) -> "_Job":
        """Measure the network in float, and prepare the quantizer."""
        from lowrank.data.batches import EvaluationBatches
        from lowrank.onnx_files.int8 import Quantizer

        sample = data.validation.sample(settings.sensitivity_images)
        in_float = in_runtime.outputs(model, sample)
        before = in_runtime.values(model, data.validation)
        batches = EvaluationBatches(data.train.sample(settings.images), in_runtime.spec)
        quantizer = Quantizer(model, _Inputs(batches), settings, intermediate)
        return cls(
            model, in_runtime, data, settings, intermediate, quantizer, before, sample, in_float
        )


def _write_all(
    job: _Job,
    types: dict[str, "IntegerTypes"],
    connections: dict[str, dict[str, Any]],
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a file for each kind of hardware, and return records of the files and their times.

    The first device of each kind of hardware is timed, to find nodes that are slower in int8.
    `types` are the integer types of each device.
    """
    times, files = {}, {}
    device_of = {int8_types: device for device, int8_types in reversed(types.items())}
    for int8_types in dict.fromkeys(types.values()):
        slow: tuple[str, ...] = ()
        if job.settings.by_time:
            device = device_of[int8_types]
            times[int8_types.file] = _times(job, int8_types, device, connections.get(device))
            slow = tuple(times[int8_types.file].get("kept_in_float", ()))
        files[int8_types.file] = _write(job, int8_types, folder, slow)
    return files, times


def _times(
    job: _Job, types: "IntegerTypes", device: str, connection: dict[str, Any] | None
) -> dict[str, Any]:
    """Measure which nodes a device runs slower in int8 than in float, and report them."""
    from lowrank.config.device_kinds import create_device
    from lowrank.devices import DeviceError
    from lowrank.onnx_files.int8_times import measure

    if connection is None:
        return {"device": device, "not_measured": "the connection to the device is not known"}
    all_int8, mixed = job.intermediate / "all.onnx", job.intermediate / "mixed.onnx"

    def write(kept: Sequence[str]) -> Path:
        job.quantizer.write(mixed, types, but=kept)
        return mixed

    job.quantizer.write(all_int8, types)
    try:
        machine = create_device(device, connection)
    except DeviceError as error:
        return {"device": device, "not_measured": str(error)}
    times = measure(machine, job.model, all_int8, write)
    if reason := times.get("not_measured"):
        say(f"warning: {device}: nodes are not timed and stay in int8: {reason}")
    elif measured := times["whole"]:
        outcome = "they are kept in float" if times["kept_in_float"] else "they stay in int8"
        say(
            f"{device}: slower in int8 than in float: {', '.join(times['candidates'])}. With these "
            f"nodes in float, the complete file runs at {measured['speedup']:.2f} times its speed "
            f"({measured['speedup_low']:.2f} to {measured['speedup_high']:.2f}): {outcome}"
        )
    else:
        say(f"{device}: none of {len(times['nodes'])} nodes is slower in int8 than in float")
    return times


def _write(job: _Job, types: "IntegerTypes", folder: Path, slow: tuple[str, ...]) -> dict[str, Any]:
    """Write the file with these types and with `slow` nodes in float, and return its record."""
    from lowrank.devices.processor import Processor, integer_types
    from lowrank.onnx_files.int8_search import ToleranceSearch

    settings, data, task = job.settings, job.data, job.in_runtime.task
    metric = task.metric
    # If products saturate on this machine but not on the device, use float kernels between the
    # conversions. They compute the same outputs as the device.
    saturates = integer_types(Processor.here()).reduce_range and not types.reduce_range
    in_runtime = replace(job.in_runtime, float_kernels=saturates)

    def lost(path: Path) -> float:
        values = in_runtime.values(path, data.validation)
        return metric.loss(job.before[metric.key], values[metric.key])

    def divergence(path: Path) -> float:
        return float(task.divergence(in_runtime.outputs(path, job.sample), job.in_float))

    output = folder / types.file
    kept = ToleranceSearch(
        job.quantizer,
        lost=lost,
        divergence=divergence,
        unit=metric.difference_unit,
        tolerance=settings.tolerance,
        types=types,
        seconds=settings.search_seconds,
        but=slow,
        say=say,
    ).write(output)
    accuracy = {
        "validation": in_runtime.values(output, data.validation),
        "test": in_runtime.values(output, data.test),
    }
    return _record(job, types, output, accuracy, kept, slow)


def _record(
    job: _Job,
    types: "IntegerTypes",
    output: Path,
    accuracy: dict[str, dict[str, float]],
    kept: "Kept",
    slow: tuple[str, ...],
) -> dict[str, Any]:
    """Return the record of a file for the report, and report its main figures as progress."""
    size, nodes = output.stat().st_size, len(job.quantizer.nodes)
    in_float, metric = [*slow, *kept.nodes], job.in_runtime.task.metric
    validation, before, test = (
        metric.text(values[metric.key])
        for values in (accuracy["validation"], job.before, accuracy["test"])
    )
    say(
        f"{types.file}: {metric.noun} {validation} on the validation split (float: {before}), "
        f"{test} on the test split, {size / 1e6:.2f} MB, {len(in_float)} of {nodes} nodes in float"
    )
    return {
        "activations": types.activations,
        "reduce_range": types.reduce_range,
        "accuracy": accuracy,
        "size_bytes": size,
        "nodes": nodes,
        "kept_in_float": in_float,
        "slower_in_int8": list(slow),
        "within_tolerance": kept.within,
    }


if __name__ == "__main__":
    quantize()
