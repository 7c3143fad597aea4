"""Quantise an exported network to int8 for each kind of hardware, and measure its accuracy."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.config.quantize import QuantizeSettings
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import Json, input_path, input_paths, output_path, parameter

if TYPE_CHECKING:
    from lowrank.devices.processor import IntegerTypes
    from lowrank.onnx_files.int8 import Kept, Quantizer


@click.command(cls=Step)
@input_path("model", "The network, ONNX.")
@input_path("state", "What it was exported from, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_paths("devices", "Descriptions of the devices, the main one first.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path("ready", "Such a folder of the same network; empty: none.", optional=True)
@parameter("kind", "methods.<method>.quantize; empty: nothing is done.", default="")
@parameter("settings", "quantize, JSON.", Json(QuantizeSettings))
@parameter("connections", "How each device is reached, by name, JSON.", Json(), default="{}")
@output_path("folder", "An ONNX file for each kind; report.json.")
def quantize(
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
    """Quantise an exported network to int8 for each kind of hardware, and measure its accuracy."""
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.int8_files import REPORT, TIMES, copy_folder

    report = folder / REPORT
    if not kind:
        # What DVC keeps must be there, whether a method is quantised or not.
        write_json(report, {"kind": None})
        return
    if ready:
        # The method leaves the network as it was, and the original was quantized for the control.
        copy_folder(ready, folder)
        say(f"the network is the original: {ready} is its int8")
        return

    use_threads(settings.threads)
    from lowrank.data.datasets import open_dataset
    from lowrank.devices.processor import Processor
    from lowrank.onnx_files.int8 import types_for
    from lowrank.surgery.states import read_spec

    types = {
        path.stem: types_for(Processor.from_json(read_json(path)), settings) for path in devices
    }
    # The first device of each kind of hardware says which nodes it runs slower in int8.
    timed = {each: device for device, each in reversed(types.items())} if settings.by_time else {}
    data = open_dataset(dataset, splits)
    with tempfile.TemporaryDirectory() as intermediate:
        job = _Job.start(model, read_spec(state), data, settings, Path(intermediate))
        times, files = {}, {}
        for each in dict.fromkeys(types.values()):
            slow: tuple[str, ...] = ()
            if device := timed.get(each):
                times[each.file] = _times(job, each, device, connections.get(device))
                slow = tuple(times[each.file].get("kept_in_float", ()))
            files[each.file] = _written(job, each, folder, slow)
    if timed:
        write_json(folder / TIMES, times)
    write_json(
        report,
        {
            "kind": kind,
            "devices": {device: each.file for device, each in types.items()},
            "files": files,
            "float_accuracy": {"validation": job.before},
        },
    )


class _Inputs(Sequence[dict[str, Any]]):
    """The images of evaluation batches, as the exported network takes them, one batch at a time."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return {"images": self._batches[number][0].numpy()}


@dataclass(frozen=True)
class _Job:
    """What all files of a network share; `before` is its accuracy in float.

    `in_float` is what it answers there to `sample`, images of the validation split.
    """

    model: Path
    spec: Any
    data: Any
    asked: Any
    intermediate: Path
    quantizer: "Quantizer"
    before: dict[str, float]
    sample: Any
    in_float: Any

    @classmethod
    def start(cls, model: Path, spec: Any, data: Any, asked: Any, intermediate: Path) -> "_Job":
        """Measure the accuracy in float, and make ready to quantize."""
        from lowrank.data.batches import EvaluationBatches
        from lowrank.onnx_files.int8 import Quantizer
        from lowrank.tasks.exported import exported_percent, log_probabilities

        sample = data.validation.sample(asked.sensitivity_images)
        in_float = log_probabilities(model, sample, spec, threads=asked.threads)
        before = exported_percent(model, data.validation, spec, threads=asked.threads)
        batches = EvaluationBatches(data.train.sample(asked.images), spec)
        quantizer = Quantizer(model, _Inputs(batches), asked, intermediate)
        return cls(model, spec, data, asked, intermediate, quantizer, before, sample, in_float)


def _times(
    job: _Job, types: "IntegerTypes", device: str, connection: dict[str, Any] | None
) -> dict[str, Any]:
    """Ask a device which nodes it runs slower in int8 than in float, and say so."""
    from lowrank.devices import DeviceError, create_device
    from lowrank.onnx_files.int8_times import measure

    if connection is None:
        return {"device": device, "not_measured": "it is not known how the device is reached"}
    whole, mixed = job.intermediate / "all.onnx", job.intermediate / "mixed.onnx"

    def write(kept: Sequence[str]) -> Path:
        job.quantizer.write(mixed, types, but=kept)
        return mixed

    job.quantizer.write(whole, types)
    try:
        there = create_device(device, connection)
    except DeviceError as error:
        return {"device": device, "not_measured": str(error)}
    found = measure(there, job.model, whole, write)
    if because := found.get("not_measured"):
        say(f"warning: {device}: nodes are not timed, and stay in int8: {because}")
    elif measured := found["whole"]:
        outcome = (
            "they stay in float" if found["kept_in_float"] else "they stay in int8 all the same"
        )
        say(
            f"{device}: slower in int8 than in float: {', '.join(found['candidates'])}. With these "
            f"in float the whole file runs at {measured['speedup']:.2f} times its speed "
            f"({measured['speedup_low']:.2f} to {measured['speedup_high']:.2f}): {outcome}"
        )
    else:
        say(f"{device}: none of {len(found['nodes'])} nodes is slower in int8 than in float")
    return found


def _written(
    job: _Job, types: "IntegerTypes", folder: Path, slow: tuple[str, ...]
) -> dict[str, Any]:
    """Write the file of these types, `slow` nodes in float; what is known of it."""
    from lowrank.devices.processor import Processor, integer_types
    from lowrank.onnx_files.int8 import within_tolerance
    from lowrank.surgery.divergence import mean_divergence
    from lowrank.tasks.exported import exported_percent, log_probabilities

    asked, data, top1 = job.asked, job.data, job.before["top1"]
    # Where this machine's products would saturate and the device's do not, float kernels
    # between the conversions answer what the device does.
    saturates = integer_types(Processor.here()).reduce_range and not types.reduce_range
    how = {"spec": job.spec, "threads": asked.threads, "float_kernels": saturates}
    percent, answers = partial(exported_percent, **how), partial(log_probabilities, **how)
    output = folder / types.file
    kept = within_tolerance(
        job.quantizer,
        output,
        types,
        lost=lambda path: top1 - percent(path, data.validation)["top1"],
        divergence=lambda path: mean_divergence(job.in_float, answers(path, job.sample)),
        tolerance=asked.tolerance,
        seconds=asked.search_seconds,
        but=slow,
        say=say,
    )
    accuracy = {
        "validation": percent(output, data.validation),
        "test": percent(output, data.test),
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
    """What the report holds of a file; the main figures are said."""
    size, nodes = output.stat().st_size, len(job.quantizer.nodes)
    in_float = [*slow, *kept.nodes]
    say(
        f"{types.file}: {accuracy['validation']['top1']:.2f} % of the validation split "
        f"(float: {job.before['top1']:.2f} %), {accuracy['test']['top1']:.2f} % of the test "
        f"split, {size / 1e6:.2f} MB, {len(in_float)} of {nodes} nodes in float"
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
