"""Measure original and compressed turn about on one device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Json, Step, say

if TYPE_CHECKING:
    from lowrank.devices import Device


# Test images whose answers on the device are compared: a wrong kernel shows on each of them.
_COMPARED = 64


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="ONNX file.")
@click.option("--compressed", type=Path, required=True, help="ONNX file.")
@click.option("--quantized", default="", help="Folder of the quantize step; empty: float alone.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--state", type=Path, required=True, help="The original, safetensors.")
@click.option(
    "--processor", type=Path, required=True, help="The device as described by describe_device."
)
@click.option("--device", required=True, help="Its name under `benchmark` in params.yaml.")
@click.option("--settings", type=Json(), required=True, help="benchmark.<device>, JSON.")
@click.option("--output", type=Path, required=True, help="Output: the measurements, JSON.")
def benchmark(
    original: Path,
    compressed: Path,
    quantized: str,
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

    main, *others = combinations(settings).items()
    try:
        there = create_device(device, main[1])
        _require_same_processor(there, processor, main[1])
        measured = _measured(there, original, compressed, quantized, main[1], "")
        with real_images(dataset, state) as images:
            _check(measured, there, compressed, quantized, images, main[1])
        measured["layers_ms"] = {
            name: _by_layer(there, model, main[1])
            for name, model in (("original", original), ("compressed", compressed))
        }
        if others:
            measured["others"] = {
                name: _measured(there, original, compressed, quantized, each, f"{name}: ")
                for name, each in others
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


def _measured(
    there: Device,
    original: Path,
    compressed: Path,
    quantized: str,
    settings: dict[str, Any],
    what: str,
) -> dict[str, Any]:
    """By one setting: what the device found, and `int8` where there is a quantised model."""
    from lowrank.int8_files import file_for

    measured = there.measure(original, compressed, settings)
    _say_speedup(measured, what)
    if quantized:
        model = file_for(Path(quantized), there.name)
        if because := there.lacks_int8(model, settings):
            say(f"{what}int8 is not measured: {because}")
            measured["int8"] = {"not_measured": because}
        else:
            measured["int8"] = {**there.measure(original, model, settings), "file": model.name}
            _say_speedup(measured["int8"], f"{what}int8: ")
    return measured


def _check(
    measured: dict[str, Any],
    there: Device,
    compressed: Path,
    quantized: str,
    images: Path,
    settings: dict[str, Any],
) -> None:
    """Add `agreement` of each file, and which kernels the int8 one runs in."""
    from lowrank.int8_files import file_for

    measured["agreement"] = agreement_on(there, compressed, images, settings, in_int8=False)
    if "int8" in measured and "not_measured" not in measured["int8"]:
        model = file_for(Path(quantized), there.name)
        measured["int8"] |= checked_int8(there, model, compressed, images, settings)


@contextmanager
def real_images(dataset: Path, state: Path) -> Iterator[Path]:
    """A .npy file of some test images as the network takes them, as long as the block lasts."""
    import numpy as np

    from lowrank.networks.states import read_spec
    from lowrank.training.batches import EvaluationBatches
    from lowrank.training.datasets import open_dataset

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
    from lowrank.networks.kernels import integer_kernels, macs_of_nodes

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
    from lowrank.layer_times import REST
    from lowrank.networks.onnx_layers import layers_of_nodes

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
