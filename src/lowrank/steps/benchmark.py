"""Measure original and compressed turn about on one device."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="ONNX file.")
@click.option("--compressed", type=Path, required=True, help="ONNX file.")
@click.option("--device", required=True, help="Its name under `benchmark` in params.yaml.")
@click.option("--settings", type=Json(), required=True, help="benchmark.<device>, JSON.")
@click.option("--output", type=Path, required=True, help="Output: the measurements, JSON.")
def benchmark(
    original: Path, compressed: Path, device: str, settings: dict[str, Any], output: Path
) -> None:
    """Measure original and compressed turn about on one device."""
    from lowrank.devices import DeviceError, create_device
    from lowrank.errors import UserError
    from lowrank.files import write_json

    try:
        measured = create_device(device, settings).measure(original, compressed, settings)
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    say(
        f"{measured['original']['p50']:.3f} ms -> {measured['compressed']['p50']:.3f} ms at the "
        f"median, {measured['speedup']:.2f}x faster over {measured['repeats']} pairs"
    )
    write_json(output, measured)


if __name__ == "__main__":
    benchmark()
