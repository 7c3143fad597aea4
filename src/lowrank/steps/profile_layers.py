"""Measure the latency of layers on a device, for all ranks that they may get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from lowrank.devices import Device
    from lowrank.onnx_files.forms import Form

# Measurement settings for the nodes of one model, with the profile and without.
_PROFILE_SETTINGS = {"warmup_seconds": 0.05, "repeats": 20, "seconds": 0.15}


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
    cache: Path,
    output: Path,
) -> None:
    """Measure the latency of layers on a device, for all ranks that they may get."""
    from lowrank.config.device_kinds import create_device
    from lowrank.core.layers import LayerTable
    from lowrank.devices import DeviceError, main_settings
    from lowrank.errors import UserError
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.forms import Form
    from lowrank.onnx_files.layer_latencies import MeasuredLayers
    from lowrank.onnx_files.whole_networks import WholeNetworks
    from lowrank.ranks.latency_model import Latencies, grids_for
    from lowrank.ranks.profiled_sequences import networks_near_target, possible_sequences

    layer_table = LayerTable.from_json(read_json(table))
    grids = grids_for(possible_sequences(layer_table, layers, alternatives, settings))
    form = Form.of_settings(quantize, quantize_settings, processor)
    measure_settings = main_settings(device_settings)
    profile_settings = measure_settings | _PROFILE_SETTINGS
    try:
        machine = create_device(device, device_settings)
        original_ms, rest = _original_times(machine, original, form, device, profile_settings)
        measured = MeasuredLayers(machine, profile_settings, form, cache)
        latencies = Latencies.measured(original_ms, rest, grids, measured)
        say(f"{measured.count} convolutions measured; the original takes {original_ms:.3f} ms")
        whole = WholeNetworks(
            *(original, network, state, layer_table, latencies, form, machine, measure_settings),
            say=say,
        )
        share = settings.costs.latency_ms[device]
        pieces = [
            whole.milliseconds(sequences)
            for sequences in networks_near_target(layer_table, layers, settings, share)
        ]
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, latencies.with_whole(pieces).to_json())


def _original_times(
    machine: Device, original: Path, form: Form, device: str, settings: dict[str, Any]
) -> tuple[float, float]:
    """Return the milliseconds of the original in float, and of its other operators in this form.

    Raises UserError if the device has no int8 kernels for the form.
    """
    from lowrank.devices import FLOAT_PRODUCTS, INTEGER_PRODUCTS
    from lowrank.errors import UserError

    with form.of(original) as model:
        if form.is_quantized and (reason := machine.lacks_int8(model, settings)):
            raise UserError(
                f"benchmark.{device}: this device cannot meet a target of milliseconds in "
                f"int8: {reason}. Remove `quantize` or the target for this device."
            )
        nodes = machine.node_times(model, settings).values()
    products = FLOAT_PRODUCTS | INTEGER_PRODUCTS
    rest = sum(node.milliseconds for node in nodes if node.operator not in products)
    in_float = machine.node_times(original, settings).values()
    return sum(node.milliseconds for node in in_float), rest


if __name__ == "__main__":
    profile_layers()
