"""Measure original and compressed turn about on one device."""

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


# Test images whose answers on the device are compared: a wrong kernel shows on each of them.
_COMPARED = 64


@click.command(cls=Step)
@input_path("original", "ONNX file.")
@input_path("compressed", "ONNX file.")
@input_path("quantized", "Folder of the quantize step; empty: float alone.", optional=True)
@input_path("control", "Such a folder of the original.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("state", "The original, safetensors.")
@input_path("processor", "The device as described by describe_device.")
@wildcard("device", "Its name under `benchmark` in params.yaml.")
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
    """Measure original and compressed turn about on one device."""
    from lowrank.devices import DeviceError, combinations, create_device
    from lowrank.errors import UserError
    from lowrank.files import write_json
    from lowrank.onnx_files.int8_files import file_for

    main, *others = combinations(settings).items()
    try:
        there = create_device(device, main[1])
        _require_same_processor(there, processor, main[1])
        models = Models(
            original,
            compressed,
            file_for(quantized, device) if quantized else None,
            file_for(control, device),
        )
        measured = _measured(there, models, main[1], "")
        with real_images(dataset, state) as images:
            _check(measured, there, models, images, main[1])
        measured["layers_ms"] = {
            name: _by_layer(there, model, main[1])
            for name, model in (("original", original), ("compressed", compressed))
        }
        if others:
            measured["others"] = {
                name: _measured(there, models, each, f"{name}: ") for name, each in others
            }
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, measured)


def _require_same_processor(there: Device, described: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where the device has another processor than when it was described."""
    from lowrank.devices.processor import Processor
    from lowrank.errors import UserError
    from lowrank.files import read_json

    before = Processor.from_json(read_json(described))
    now = Processor.from_json(there.describe(settings))
    if before != now:
        raise UserError(
            f"{described}: the device '{there.name}' is described as {before.cpu} "
            f"({before.architecture}), but it is {now.cpu} ({now.architecture}) now, or has other "
            "instructions. int8 "
            "files made for the one may be slow or wrong on the other. Delete that file and run "
            f"the same command again; with DVC, run `dvc repro --force --single-item "
            f"describe_device@{there.name}` first."
        )


@dataclass(frozen=True)
class Models:
    """ONNX files to measure; `quantized` may be None, and `control` is the original in int8."""

    original: Path
    compressed: Path
    quantized: Path | None
    control: Path

    @property
    def is_control(self) -> bool:
        """Whether what is delivered is the original in int8 itself."""
        from lowrank.files import sha256_of

        return self.quantized is not None and sha256_of(self.quantized) == sha256_of(self.control)


def _measured(there: Device, models: Models, settings: dict[str, Any], what: str) -> dict[str, Any]:
    """Measure by one setting: the compressed network, `int8` if there is one, and `control`.

    What is delivered, in int8 if there is that, is also measured against the control.
    """
    measured = there.measure(models.original, models.compressed, settings)
    _say_speedup(measured, what)
    control = _in_int8(
        there, models.original, models.control, settings, f"{what}original in int8: "
    )
    measured["control"] = {"int8": control}
    delivered = measured
    if models.quantized:
        delivered = measured["int8"] = (
            dict(control)
            if models.is_control
            else _in_int8(there, models.original, models.quantized, settings, f"{what}int8: ")
        )
    if "not_measured" not in control and "not_measured" not in delivered:
        delivered |= _over_control(there, models, settings, what)
    return measured


def _in_int8(
    there: Device, original: Path, model: Path, settings: dict[str, Any], what: str
) -> dict[str, Any]:
    """Measure an int8 model against the original in float, or say why it is not measured."""
    if because := there.lacks_int8(model, settings):
        say(f"{what}not measured: {because}")
        return {"not_measured": because}
    measured = {**there.measure(original, model, settings), "file": model.name}
    _say_speedup(measured, what)
    return measured


def _over_control(
    there: Device, models: Models, settings: dict[str, Any], what: str
) -> dict[str, float]:
    """Measure what is delivered against the original in int8: the ratio and its interval."""
    ends = ("speedup", "speedup_low", "speedup_high")
    if models.is_control:
        return {f"speedup_over_control{end.removeprefix('speedup')}": 1.0 for end in ends}
    # The energy of both was counted beside the original's.
    found = there.measure(
        models.control, models.quantized or models.compressed, settings | {"energy_seconds": 0}
    )
    say(
        f"{what}{found['speedup']:.2f}x faster than the original in int8 "
        f"({found['speedup_low']:.2f} to {found['speedup_high']:.2f})"
    )
    return {f"speedup_over_control{end.removeprefix('speedup')}": found[end] for end in ends}


def _check(
    measured: dict[str, Any], there: Device, models: Models, images: Path, settings: dict[str, Any]
) -> None:
    """Add `agreement` of each file, and which kernels those in int8 run in."""
    measured["agreement"] = agreement_on(there, models.compressed, images, settings, in_int8=False)
    control = measured["control"]["int8"]
    if "not_measured" not in control:
        control |= checked_int8(there, models.control, models.original, images, settings)
    if models.is_control:
        measured["int8"] |= {key: each for key, each in control.items() if key in _CHECKED}
    elif models.quantized and "not_measured" not in measured["int8"]:
        found = checked_int8(there, models.quantized, models.compressed, images, settings)
        measured["int8"] |= found


# What `checked_int8` finds.
_CHECKED = ("agreement", "integer_kernels")


@contextmanager
def real_images(dataset: Path, state: Path) -> Iterator[Path]:
    """A .npy file of some test images as the network takes them, as long as the block lasts."""
    import numpy as np

    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset
    from lowrank.surgery.states import read_spec

    batches = EvaluationBatches(open_dataset(dataset).test.sample(_COMPARED), read_spec(state))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.concatenate([batches[n][0].numpy() for n in range(len(batches))]))
        yield path


def agreement_on(
    there: Device, model: Path, images: Path, settings: dict[str, Any], *, in_int8: bool
) -> dict[str, Any]:
    """Compare what a device answers with what the file says, computed here by plain kernels."""
    from lowrank.devices import MeasureSettings
    from lowrank.devices.answers import agreement, expected_answers

    asked = MeasureSettings(batch_size=settings.get("batch_size", 1))
    expected = expected_answers(model, images, asked)
    found = agreement(there.answers(model, images, settings), expected, in_int8=in_int8)
    if found["warning"]:
        say(f"warning: {there.name}: {model}: {found['warning']}")
    return found


def checked_int8(
    there: Device, model: Path, in_float: Path, images: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """`agreement` and `integer_kernels` of an int8 file, whose network in float is given, too."""
    from lowrank.onnx_files.kernels import integer_kernels, macs_of_nodes

    once = settings | {"warmup_seconds": 0, "repeats": 1, "seconds": 0}
    kernels = integer_kernels(there.node_times(model, once), macs_of_nodes(in_float))
    say(
        f"int8: {kernels['nodes']} of {kernels['total']} convolutions and matrix products, "
        f"{100 * kernels['macs_share']:.1f} % of the MACs, run as integer kernels"
    )
    if kernels["warning"]:
        say(f"warning: {there.name}: {model}: {kernels['warning']}")
    return {
        "agreement": agreement_on(there, model, images, settings, in_int8=True),
        "integer_kernels": kernels,
    }


def _by_layer(there: Device, model: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by plain layer, and the rest."""
    from lowrank.onnx_files.node_layers import layers_of_nodes
    from lowrank.report.layer_times import REST

    layers, found = layers_of_nodes(model), {REST: 0.0}
    for node, time in there.node_times(model, settings).items():
        name = layers.get(node, REST)
        found[name] = found.get(name, 0.0) + time.milliseconds
    return found


def _say_speedup(measured: dict[str, Any], what: str) -> None:
    say(
        f"{what}{measured['original']['p50']:.3f} ms -> {measured['compressed']['p50']:.3f} ms at "
        f"the median, {measured['speedup']:.2f}x faster ({measured['speedup_low']:.2f} to "
        f"{measured['speedup_high']:.2f}) over {measured['repeats']} runs"
    )
    if because := measured["conditions"]["warning"]:
        say(f"warning: {what}{because}")


if __name__ == "__main__":
    benchmark()
