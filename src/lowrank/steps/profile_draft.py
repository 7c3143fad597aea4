"""Measure the network of a first choice of ranks on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Plan
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_path, network_option, output_path, parameter, wildcard


@click.command(cls=Step)
@input_path("original", "The network, ONNX.")
@network_option
@input_path("state", "The network, safetensors.")
@input_path("table", "Its layer table, JSON.")
@input_path("draft", "The first choice: a plan, JSON.")
@input_path("latencies", "Latencies of layers on the device, JSON.")
@parameter("quantize", "methods.<method>.quantize; empty for float.", default="")
@parameter("quantize_settings", "quantize, JSON.", Json(QuantizeSettings))
@input_path("processor", "The description that describe_device wrote for the device.")
@wildcard("device", "Name of the device under `benchmark` in params.yaml.")
@parameter("device_settings", "benchmark.<device>, JSON.", Json())
@parameter("batch", "export_onnx.batch: `open`, or `fixed` for twins.", default="open")
@output_path("output", "The corrected latencies, JSON.")
def profile_draft(
    original: Path,
    network: NetworkSource,
    state: Path,
    table: Path,
    draft: Path,
    latencies: Path,
    quantize: str,
    quantize_settings: QuantizeSettings,
    processor: Path,
    device: str,
    device_settings: dict[str, Any],
    batch: str,
    output: Path,
) -> None:
    """Measure the network of a first choice of ranks on a device."""
    from lowrank.config.device_kinds import create_device
    from lowrank.devices import DeviceError, MeasureSettings, main_settings
    from lowrank.errors import UserError
    from lowrank.evaluation.device_measurements import require_same_processor
    from lowrank.factorize import get_factorization, grouped_sequence
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.forms import Form
    from lowrank.onnx_files.measured_form import measured_form
    from lowrank.onnx_files.whole_networks import WholeNetworks, export_of_state
    from lowrank.ranks.latency_model import Latencies
    from lowrank.surgery.states import read_spec

    layers = LayerTable.from_json(read_json(table))
    form = Form.of_settings(quantize, quantize_settings, processor)
    sequences = {
        name: grouped_sequence(get_factorization(share.factorization), layers[name], share.ranks)
        for name, share in Plan.read(draft).shares.items()
        if share.ranks
    }
    known = Latencies.from_json(read_json(latencies))
    try:
        machine = create_device(device, device_settings)
        settings = main_settings(device_settings)
        require_same_processor(machine, processor, settings)
        main = MeasureSettings.of(settings)
        size = main.batch_size if batch == "fixed" else None
        with measured_form(original, read_spec(state), network, batch=size) as fixed:
            export = export_of_state(state, network, size)
            piece = WholeNetworks(
                fixed, export, layers, known, form, machine, settings, say
            ).milliseconds(sequences)
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    # The final choice is close to the draft, so only the draft's correction is used.
    write_json(output, known.with_whole([piece]).to_json())


if __name__ == "__main__":
    profile_draft()
