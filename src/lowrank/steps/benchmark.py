"""Measure the original and the compressed network in alternating turns on one device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_path, output_path, parameter, wildcard

if TYPE_CHECKING:
    from lowrank.devices import Device


# Number of test images whose outputs are compared. A wrong kernel affects each of them.
_COMPARED_IMAGES = 64


@click.command(cls=Step)
@input_path("original", "The original network, ONNX.")
@input_path("compressed", "The compressed network, ONNX.")
@input_path(
    "quantized", "Folder that the quantize step wrote; empty for float only.", optional=True
)
@input_path("control", "Folder that the quantize step wrote for the original.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("state", "The original network, safetensors.")
@input_path("processor", "The description that describe_device wrote for the device.")
@wildcard("device", "Name of the device under `benchmark` in params.yaml.")
@parameter("settings", "benchmark.<device>, JSON.", Json())
@output_path("output", "The measurements, JSON.")
def benchmark(
    original: Path,
    compressed: Path,
    quantized: Path | None,
    control: Path,
    dataset: Path,
    state: Path,
    processor: Path,
    device: str,
    settings: dict[str, Any],
    output: Path,
) -> None:
    """Measure the original and the compressed network in alternating turns on one device."""
    from lowrank.config.device_kinds import create_device
    from lowrank.devices import DeviceError, combinations
    from lowrank.errors import UserError
    from lowrank.files import write_json
    from lowrank.onnx_files.int8_files import file_for

    main, *others = combinations(settings).items()
    try:
        machine = create_device(device, settings)
        _require_same_processor(machine, processor, main[1])
        models = Models(
            original,
            compressed,
            file_for(quantized, device) if quantized else None,
            file_for(control, device),
        )
        measured = _measure(machine, models, main[1], "")
        with real_images(dataset, state) as images:
            _check(measured, machine, models, images, main[1])
        measured["layers_ms"] = {
            name: _milliseconds_by_layer(machine, model, main[1])
            for name, model in (("original", original), ("compressed", compressed))
        }
        if others:
            measured["others"] = {
                name: _measure(machine, models, other_settings, f"{name}: ")
                for name, other_settings in others
            }
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, measured)


def _require_same_processor(device: Device, description: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if the processor of the device has changed since it was described."""
    from lowrank.devices.processor import Processor
    from lowrank.errors import UserError
    from lowrank.files import read_json

    before = Processor.from_json(read_json(description))
    now = Processor.from_json(device.describe(settings))
    if before != now:
        raise UserError(
            f"{description}: the device '{device.name}' is described as {before.cpu} "
            f"({before.architecture}), but it is {now.cpu} ({now.architecture}) now, or has other "
            "instructions. int8 files made for one processor may be slow or wrong on another. "
            "Delete that file and run the same command again. With DVC, run `dvc repro --force "
            f"--single-item describe_device@{device.name}` first."
        )


@dataclass(frozen=True)
class Models:
    """The ONNX files to measure.

    `quantized` is None without an int8 network. `control` is the original in int8.
    """

    original: Path
    compressed: Path
    quantized: Path | None
    control: Path

    @property
    def is_control(self) -> bool:
        """Whether the delivered network is the control, the original in int8."""
        from lowrank.files import sha256_of

        return self.quantized is not None and sha256_of(self.quantized) == sha256_of(self.control)


def _measure(
    device: Device, models: Models, settings: dict[str, Any], label: str
) -> dict[str, Any]:
    """Measure with one setting: the compressed network, its `int8` network and the `control`.

    The delivered network, in int8 if there is one, is also measured against the control.
    """
    measured = device.measure(models.original, models.compressed, settings)
    _say_speedup(measured, label)
    control = _measure_int8(
        device, models.original, models.control, settings, f"{label}original in int8: "
    )
    measured["control"] = {"int8": control}
    delivered = measured
    if models.quantized:
        delivered = measured["int8"] = (
            dict(control)
            if models.is_control
            else _measure_int8(
                device, models.original, models.quantized, settings, f"{label}int8: "
            )
        )
    if "not_measured" not in control and "not_measured" not in delivered:
        delivered |= _measure_against_control(device, models, settings, label)
    return measured


def _measure_int8(
    device: Device, original: Path, model: Path, settings: dict[str, Any], label: str
) -> dict[str, Any]:
    """Measure an int8 model against the original in float, or report why it is not measured."""
    if reason := device.lacks_int8(model, settings):
        say(f"{label}not measured: {reason}")
        return {"not_measured": reason}
    measured = {**device.measure(original, model, settings), "file": model.name}
    _say_speedup(measured, label)
    return measured


def _measure_against_control(
    device: Device, models: Models, settings: dict[str, Any], label: str
) -> dict[str, float]:
    """Measure the delivered network against the original in int8: the ratio and its interval."""
    keys = ("speedup", "speedup_low", "speedup_high")
    if models.is_control:
        return {f"speedup_over_control{key.removeprefix('speedup')}": 1.0 for key in keys}
    # Energy is not counted again, because both were counted together with the original.
    measured = device.measure(
        models.control, models.quantized or models.compressed, settings | {"energy_seconds": 0}
    )
    say(
        f"{label}{measured['speedup']:.2f}x faster than the original in int8 "
        f"({measured['speedup_low']:.2f} to {measured['speedup_high']:.2f})"
    )
    return {f"speedup_over_control{key.removeprefix('speedup')}": measured[key] for key in keys}


def _check(
    measured: dict[str, Any], device: Device, models: Models, images: Path, settings: dict[str, Any]
) -> None:
    """Add the `agreement` of each file, and the kernels that int8 files run in."""
    measured["agreement"] = agreement_on(device, models.compressed, images, settings, in_int8=False)
    control = measured["control"]["int8"]
    if "not_measured" not in control:
        control |= checked_int8(device, models.control, models.original, images, settings)
    if models.is_control:
        measured["int8"] |= {key: value for key, value in control.items() if key in _CHECKED}
    elif models.quantized and "not_measured" not in measured["int8"]:
        checks = checked_int8(device, models.quantized, models.compressed, images, settings)
        measured["int8"] |= checks


# Keys of the result of `checked_int8`.
_CHECKED = ("agreement", "integer_kernels")


@contextmanager
def real_images(dataset: Path, state: Path) -> Iterator[Path]:
    """Provide a temporary .npy file of some preprocessed test images inside the block."""
    import numpy as np

    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset
    from lowrank.surgery.states import read_spec

    sample = open_dataset(dataset).test.sample(_COMPARED_IMAGES)
    batches = EvaluationBatches(sample, read_spec(state))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.concatenate([batches[n][0].numpy() for n in range(len(batches))]))
        yield path


def agreement_on(
    device: Device, model: Path, images: Path, settings: dict[str, Any], *, in_int8: bool
) -> dict[str, Any]:
    """Compare a device's outputs with the reference outputs of the file, computed here."""
    from lowrank.devices import MeasureSettings
    from lowrank.devices.answers import agreement, expected_answers

    measure_settings = MeasureSettings(batch_size=settings.get("batch_size", 1))
    expected = expected_answers(model, images, measure_settings)
    comparison = agreement(device.answers(model, images, settings), expected, in_int8=in_int8)
    if comparison["warning"]:
        say(f"warning: {device.name}: {model}: {comparison['warning']}")
    return comparison


def checked_int8(
    device: Device, model: Path, in_float: Path, images: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return `agreement` and `integer_kernels` of an int8 file.

    `in_float` is the same network in float, from which the MACs of nodes are counted.
    """
    from lowrank.onnx_files.kernels import integer_kernels, macs_of_nodes

    once = settings | {"warmup_seconds": 0, "repeats": 1, "seconds": 0}
    kernels = integer_kernels(device.node_times(model, once), macs_of_nodes(in_float))
    say(
        f"int8: {kernels['nodes']} of {kernels['total']} convolutions and matrix products, "
        f"{100 * kernels['macs_share']:.1f} % of the MACs, run as integer kernels"
    )
    if kernels["warning"]:
        say(f"warning: {device.name}: {model}: {kernels['warning']}")
    return {
        "agreement": agreement_on(device, model, images, settings, in_int8=True),
        "integer_kernels": kernels,
    }


def _milliseconds_by_layer(
    device: Device, model: Path, settings: dict[str, Any]
) -> dict[str, float]:
    """Return the milliseconds of each plain layer, and of the rest."""
    from lowrank.onnx_files.node_layers import layers_of_nodes
    from lowrank.report.layer_times import REST

    layers, milliseconds = layers_of_nodes(model), {REST: 0.0}
    for node, time in device.node_times(model, settings).items():
        name = layers.get(node, REST)
        milliseconds[name] = milliseconds.get(name, 0.0) + time.milliseconds
    return milliseconds


def _say_speedup(measured: dict[str, Any], label: str) -> None:
    say(
        f"{label}{measured['original']['p50']:.3f} ms -> {measured['compressed']['p50']:.3f} ms at "
        f"the median, {measured['speedup']:.2f}x faster ({measured['speedup_low']:.2f} to "
        f"{measured['speedup_high']:.2f}) over {measured['repeats']} runs"
    )
    if warning := measured["conditions"]["warning"]:
        say(f"warning: {label}{warning}")


if __name__ == "__main__":
    benchmark()
