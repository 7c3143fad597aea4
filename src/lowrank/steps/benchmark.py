"""Measure original and compressed turn about on one device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Json, Step, say

if TYPE_CHECKING:
    from lowrank.devices import Device


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="ONNX file.")
@click.option("--compressed", type=Path, required=True, help="ONNX file.")
@click.option("--quantized", default="", help="Folder of the quantize step; empty: float alone.")
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
