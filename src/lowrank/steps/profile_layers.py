"""Measure the latency of layers on a device, for all ranks that they may get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.quantize import QuantizeSettings
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    Json,
    input_path,
    kept_path,
    network_option,
    output_path,
    parameter,
    wildcard,
)


@click.command(cls=Step)
@input_path("original", "The network, ONNX.")
@network_option
@input_path("state", "The network, safetensors.")
@input_path("table", "Its layer table, JSON.")
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("alternatives", "Alternative factorizations, a JSON list.", Json(), default="[]")
@parameter("settings", "methods.<method>.ranks, JSON.", Json(BudgetSettings))
@parameter("quantize", "methods.<method>.quantize; empty for float.", default="")
@parameter("quantize_settings", "quantize, JSON.", Json(QuantizeSettings))
@input_path("processor", "The description that describe_device wrote for the device.")
@wildcard("device", "Name of the device under `benchmark` in params.yaml.")
@parameter("device_settings", "benchmark.<device>, JSON.", Json())
@parameter("batch", "export_onnx.batch: `open`, or `fixed` for twins.", default="open")
@kept_path(
    "cache",
    "build/latencies/{wildcards.device}.json",
    "Earlier measurements, JSON. New ones are added.",
)
@output_path("output", "Latencies of layers in ms, JSON.")
def profile_layers(
    original: Path,
    network: NetworkSource,
    state: Path,
    table: Path,
    layers: dict[str, str],
    alternatives: list[str],
    settings: BudgetSettings,
    quantize: str,
    quantize_settings: QuantizeSettings,
    processor: Path,
    device: str,
    device_settings: dict[str, Any],
    batch: str,
    cache: Path,
    output: Path,
) -> None:
    """Measure the latency of layers on a device, for all ranks that they may get."""
    from lowrank.config.device_kinds import create_device
    from lowrank.core.layers import LayerTable
    from lowrank.devices import DeviceError, MeasureSettings, main_settings
    from lowrank.errors import UserError
    from lowrank.evaluation.device_measurements import require_same_processor
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.forms import Form
    from lowrank.onnx_files.latency_profile import Candidates, LatencyProfile
    from lowrank.onnx_files.measured_form import measured_form
    from lowrank.onnx_files.whole_networks import export_of_state
    from lowrank.surgery.states import read_spec

    layer_table = LayerTable.from_json(read_json(table))
    form = Form.of_settings(quantize, quantize_settings, processor)
    try:
        machine, measured_settings = (
            create_device(device, device_settings),
            main_settings(device_settings),
        )
        require_same_processor(machine, processor, measured_settings)
        main = MeasureSettings.of(measured_settings)
        size = main.batch_size if batch == "fixed" else None
        with measured_form(original, read_spec(state), network, batch=size) as fixed:
            profile = LatencyProfile(
                machine,
                measured_settings,
                form,
                cache,
                say,
            )
            latencies = profile.measured(
                fixed,
                export_of_state(state, network, size),
                layer_table,
                Candidates(layers, alternatives, settings, device),
            )
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, latencies.to_json())


if __name__ == "__main__":
    profile_layers()
