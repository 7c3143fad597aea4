"""Measure the latency of layers on a device, for all ranks that they may get."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.quantize import QuantizeSettings
from lowrank.config.ranks import RankSettings
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
from lowrank.steps.profiling import Form, in_one_piece

if TYPE_CHECKING:
    from lowrank.config.ranks import RankSettings
    from lowrank.core.layers import LayerTable, Pair, PlainLayer
    from lowrank.devices import Device

# Maximum number of convolutions in one measured model, and the maximum bytes of their weights. A
# compressed network has about as many, so the caches are filled to a similar degree.
_MAX_LAYERS = 40
_MAX_BYTES = 4_000_000

# Measurement settings for the nodes of one model, with the profile and without.
_PROFILE_SETTINGS = {"warmup_seconds": 0.05, "repeats": 20, "seconds": 0.15}

# Some networks whose layers all have the same saving are measured in one piece. Their share of the
# original's MACs is about the target's share (or the middle of a search range) to these powers.
_SHARE_POWERS = (0.5, 1.0, 1.5)


@click.command(cls=Step)
@input_path("original", "The network, ONNX.")
@network_option
@input_path("state", "The network, safetensors.")
@input_path("table", "Its layer table, JSON.")
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("alternatives", "Alternative factorizations, a JSON list.", Json(), default="[]")
@parameter("settings", "methods.<method>.ranks, JSON.", Json(RankSettings))
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
    settings: RankSettings,
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
    from lowrank.devices import (
        FLOAT_PRODUCTS,
        INTEGER_PRODUCTS,
        DeviceError,
        main_settings,
    )
    from lowrank.errors import UserError
    from lowrank.files import read_json, write_json
    from lowrank.ranks.latency_model import Latencies, grids_for

    layer_table = LayerTable.from_json(read_json(table))
    grids = grids_for(_sequences(layer_table, layers, alternatives, settings))
    form = Form.of_settings(quantize, quantize_settings, processor)
    measure_settings = main_settings(device_settings)
    profile_settings = measure_settings | _PROFILE_SETTINGS
    try:
        machine = create_device(device, device_settings)
        with form.of(original) as model:
            if quantize and (reason := machine.lacks_int8(model, profile_settings)):
                raise UserError(
                    f"benchmark.{device}: this device cannot meet a target of milliseconds in "
                    f"int8: {reason}. Remove `quantize` or the target for this device."
                )
            nodes = machine.node_times(model, profile_settings).values()
        products = FLOAT_PRODUCTS | INTEGER_PRODUCTS
        rest = sum(node.milliseconds for node in nodes if node.operator not in products)
        in_float = machine.node_times(original, profile_settings).values()
        original_ms = sum(node.milliseconds for node in in_float)
        measured = _Measured(machine, profile_settings, form, cache)
        latencies = Latencies.measured(original_ms, rest, grids, measured)
        say(f"{measured.count} convolutions measured; the original takes {original_ms:.3f} ms")
        share = settings.costs.latency_ms[device]
        pieces = [
            in_one_piece(
                original,
                network,
                state,
                layer_table,
                sequences,
                latencies,
                form,
                machine,
                measure_settings,
            )
            for sequences in _compressed(layer_table, layers, settings, share)
        ]
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, latencies.with_whole(pieces).to_json())


class _Measured:
    """Latencies of plain layers, measured on demand and cached by device and runtime."""

    def __init__(self, device: Device, settings: dict[str, Any], form: Form, cache: Path) -> None:
        from lowrank.files import read_json

        self._device, self._settings, self._form, self._path = device, settings, form, cache
        environment = sorted(device.environment(settings).items())
        # The optimization level determines the kernels. The environment includes the processor.
        relevant = {name: settings.get(name) for name in ("batch_size", "optimization")}
        self._key = str([*environment, *sorted(relevant.items()), str(form)])
        self._known = read_json(cache) if cache.exists() else {}
        self.count = 0

    def __call__(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        """Return the milliseconds of each layer for its input map."""
        known = self._known.setdefault(self._key, {})
        missing = [layer for layer in dict.fromkeys(layers) if str(layer) not in known]
        for batch in _batches(missing, self._form.bytes_per_weight):
            known |= {str(layer): ms for layer, ms in zip(batch, self._measure(batch), strict=True)}
            remember(self._path, self._key, known)
        self.count += len(missing)
        return [known[str(layer)] for layer in layers]

    def _measure(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        import onnx

        from lowrank.onnx_files.single_layers import side_by_side

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "layers.onnx"
            onnx.save(side_by_side(layers, self._settings["batch_size"]), model)
            with self._form.of(model) as formed:
                nodes = self._device.node_times(formed, self._settings)
        return [nodes[f"layer{index}"].milliseconds for index in range(len(layers))]


def remember(path: Path, key: str, milliseconds: dict[str, float]) -> None:
    """Add measurements to a cache file. Several jobs may add to it at the same time."""
    from lowrank.files import read_json, write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    # The operating system releases the lock when its process ends.
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_json(path) if path.exists() else {}
        known[key] = known.get(key, {}) | milliseconds
        write_json(path, known)


def _batches(
    layers: Sequence[tuple[PlainLayer, Pair]], bytes_per_weight: int
) -> Iterator[list[tuple[PlainLayer, Pair]]]:
    """Divide layers into batches for one model each. A layer above the limit gets its own model."""
    batch: list[tuple[PlainLayer, Pair]] = []
    batch_bytes = 0
    for layer, input_map in layers:
        layer_bytes = bytes_per_weight * layer.parameters
        if batch and (len(batch) == _MAX_LAYERS or batch_bytes + layer_bytes > _MAX_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append((layer, input_map))
        batch_bytes += layer_bytes
    if batch:
        yield batch


def _compressed(
    table: LayerTable, layers: dict[str, str], rule: RankSettings, share: float
) -> Iterator[dict[str, Sequence[PlainLayer]]]:
    """Yield networks near the target's cost: the sequence of plain layers by replaced layer."""
    import numpy as np

    from lowrank.factorize import grouped_sequence
    from lowrank.ranks import leave_negligible, rank_choices, taken_layers
    from lowrank.ranks.scale import cost_of

    candidates = list(taken_layers(leave_negligible(table, rule.negligible), layers))
    for power in _SHARE_POWERS:
        sequences = {}
        for layer, method, full_ranks in candidates:
            choices = rank_choices(layer, method, full_ranks, rule, in_proportion=True)
            if not choices:
                continue
            macs = np.array([cost_of(layer, method, ranks, "macs") for ranks in choices])
            nearest = np.abs(np.log(macs / (share**power * layer.dense_macs))).argmin()
            sequences[layer.name] = grouped_sequence(method, layer, choices[nearest])
        yield sequences


def _sequences(
    table: LayerTable, layers: dict[str, str], alternatives: list[str], rule: RankSettings
) -> Iterator[tuple[Sequence[PlainLayer], Pair]]:
    """Yield the original layers, and all sequences of plain layers that may replace a layer."""
    from lowrank.factorize import grouped_sequence
    from lowrank.ranks import leave_negligible, rank_choices, taken_layers

    for layer in table.layers:
        if layer.kind != "transposed_conv":
            yield [layer], layer.input_map
    table = leave_negligible(table, rule.negligible)
    for layer, method, full_ranks in taken_layers(table, layers, alternatives):
        for ranks in rank_choices(layer, method, full_ranks, rule):
            yield grouped_sequence(method, layer, ranks), layer.input_map


if __name__ == "__main__":
    profile_layers()
