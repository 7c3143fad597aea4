"""Measure on a device the network that a first choice of ranks gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Plan
from lowrank.steps.common import Json, Step
from lowrank.steps.profiling import Form, in_one_piece


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="The network, ONNX.")
@click.option(
    "--network", "described", required=True, help="As params.yaml describes it: a name, or JSON."
)
@click.option("--state", type=Path, required=True, help="The network, safetensors.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--draft", type=Path, required=True, help="The first choice: a plan, JSON.")
@click.option("--latencies", type=Path, required=True, help="What layers take there, JSON.")
@click.option("--quantize", default="", help="methods.<method>.quantize; empty: in float.")
@click.option("--quantize-settings", type=Json(), default="{}", help="quantize, JSON.")
@click.option(
    "--processor", type=Path, required=True, help="The device as described by describe_device."
)
@click.option("--device", required=True, help="Its name under `benchmark` in params.yaml.")
@click.option("--device-settings", type=Json(), required=True, help="benchmark.<device>, JSON.")
@click.option("--output", type=Path, required=True, help="Output: those latencies, corrected.")
def profile_draft(
    original: Path,
    described: str,
    state: Path,
    table: Path,
    draft: Path,
    latencies: Path,
    quantize: str,
    quantize_settings: dict[str, Any],
    processor: Path,
    device: str,
    device_settings: dict[str, Any],
    output: Path,
) -> None:
    """Measure on a device the network that a first choice of ranks gives."""
    from lowrank.config.network_source import NetworkSource
    from lowrank.devices import DeviceError, create_device, main_settings
    from lowrank.errors import UserError
    from lowrank.factorize import get_factorization, grouped_sequence
    from lowrank.files import read_json, write_json
    from lowrank.ranks.latency_model import Latencies

    source = NetworkSource.parse(described)
    network = LayerTable.from_json(read_json(table))
    form = Form.of_settings(quantize, quantize_settings, processor)
    sequences = {
        name: grouped_sequence(get_factorization(share.factorization), network[name], share.ranks)
        for name, share in Plan.read(draft).shares.items()
        if share.ranks
    }
    known = Latencies.from_json(read_json(latencies))
    device_settings = main_settings(device_settings)
    try:
        there = create_device(device, device_settings)
        found = in_one_piece(
            original, source, state, network, sequences, known, form, there, device_settings
        )
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    # The final choice is close to this one: its proportion holds better than that of others.
    write_json(output, known.with_whole([found]).to_json())


if __name__ == "__main__":
    profile_draft()
