"""Measure the original and the compressed network in alternating turns on one device."""

from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    Json,
    input_path,
    network_option,
    output_path,
    parameter,
    wildcard,
)


@click.command(cls=Step)
@network_option
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
@parameter("batch", "export_onnx.batch: `open`, or `fixed` for twins.", default="open")
@output_path("output", "The measurements, JSON.")
def benchmark(
    network: NetworkSource,
    original: Path,
    compressed: Path,
    quantized: Path | None,
    control: Path,
    dataset: Path,
    state: Path,
    processor: Path,
    device: str,
    settings: dict[str, Any],
    batch: str,
    output: Path,
) -> None:
    """Measure the original and the compressed network in alternating turns on one device."""
    from lowrank.config.device_kinds import create_device
    from lowrank.devices import DeviceError, main_settings
    from lowrank.errors import UserError
    from lowrank.evaluation.device_measurements import (
        measure_all,
        require_same_processor,
    )
    from lowrank.evaluation.measured_models import Models
    from lowrank.files import write_json
    from lowrank.onnx_files.int8_files import file_for

    try:
        machine = create_device(device, settings)
        require_same_processor(machine, processor, main_settings(settings))
        files = Models(
            original,
            compressed,
            file_for(quantized, device) if quantized else None,
            file_for(control, device),
        )
        with files.in_measured_form(state, network) as models:
            measured = measure_all(
                machine,
                models,
                settings,
                dataset=dataset,
                state=state,
                say=say,
                fixed_batch=batch == "fixed",
            )
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, measured)


if __name__ == "__main__":
    benchmark()
