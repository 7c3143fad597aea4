"""Measure on a device what layers take at the ranks that they may get."""

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

# Convolutions measured in one model, and the bytes of their weights: about those of a compressed
# network, whose layers find so much of the caches taken by others.
_IN_ONE_MODEL = 40
_BYTES_IN_ONE_MODEL = 4_000_000

# How long the nodes of one model are measured, with the profile and without.
_MEASURED = {"warmup_seconds": 0.05, "repeats": 20, "seconds": 0.15}

# Networks of layers of equal savings are measured in one piece, where they take about the target's
# share (or the middle of those that are searched) to these powers of the original's MACs.
_WHOLE = (0.5, 1.0, 1.5)


@click.command(cls=Step)
@input_path("original", "The network, ONNX.")
@network_option
@input_path("state", "The network, safetensors.")
@input_path("table", "Its layer table, JSON.")
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("alternatives", "Further ones, a JSON list.", Json(), default="[]")
@parameter("settings", "methods.<method>.ranks, JSON.", Json(RankSettings))
@parameter("quantize", "methods.<method>.quantize; empty: in float.", default="")
@parameter("quantize_settings", "quantize, JSON.", Json(QuantizeSettings))
@input_path("processor", "The device as described by describe_device.")
@wildcard("device", "Its name under `benchmark` in params.yaml.")
@parameter("device_settings", "benchmark.<device>, JSON.", Json())
@kept_path(
    "cache", "build/latencies/{wildcards.device}.json", "What was measured before; is added to."
)
@output_path("output", "Ms of layers, JSON.")
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
    """Measure on a device what layers take at the ranks that they may get."""
    from lowrank.core.layers import LayerTable
    from lowrank.devices import (
        FLOAT_PRODUCTS,
        INTEGER_PRODUCTS,
        DeviceError,
        create_device,
        main_settings,
    )
    from lowrank.errors import UserError
    from lowrank.files import read_json, write_json
    from lowrank.ranks.latency_model import Latencies, grids_for

    known = LayerTable.from_json(read_json(table))
    grids = grids_for(_sequences(known, layers, alternatives, settings))
    form = Form.of_settings(quantize, quantize_settings, processor)
    device_settings = main_settings(device_settings)
    asked = device_settings | _MEASURED
    try:
        there = create_device(device, device_settings)
        with form.of(original) as model:
            if quantize and (because := there.lacks_int8(model, asked)):
                raise UserError(
                    f"benchmark.{device}: a target of milliseconds in int8 cannot be met there: "
                    f"{because}. Leave `quantize` or this device's target out."
                )
            nodes = there.node_times(model, asked).values()
        products = FLOAT_PRODUCTS | INTEGER_PRODUCTS
        rest = sum(node.milliseconds for node in nodes if node.operator not in products)
        in_float = there.node_times(original, asked).values()
        whole = sum(node.milliseconds for node in in_float)
        measured = _Measured(there, asked, form, cache)
        found = Latencies.measured(whole, rest, grids, measured)
        say(f"{measured.count} convolutions measured; the network as it is: {whole:.3f} ms")
        share = settings.costs.latency_ms[device]
        pieces = [
            in_one_piece(
                original, network, state, known, sequences, found, form, there, device_settings
            )
            for sequences in _compressed(known, layers, settings, share)
        ]
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, found.with_whole(pieces).to_json())


class _Measured:
    """Measures plain layers, and remembers those of the same device and runtime."""

    def __init__(self, device: Device, asked: dict[str, Any], form: Form, cache: Path) -> None:
        from lowrank.files import read_json

        self._device, self._asked, self._form, self._path = device, asked, form, cache
        environment = sorted(device.environment(asked).items())
        # The optimization decides which kernels run, and the environment has the processor.
        asked_for = {name: asked.get(name) for name in ("batch_size", "optimization")}
        self._where = str([*environment, *sorted(asked_for.items()), str(form)])
        self._known = read_json(cache) if cache.exists() else {}
        self.count = 0

    def __call__(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        """Milliseconds of each layer on its map."""
        here = self._known.setdefault(self._where, {})
        missing = [each for each in dict.fromkeys(layers) if str(each) not in here]
        for some in _together(missing, self._form.bytes_per_weight):
            here |= {str(each): ms for each, ms in zip(some, self._measure(some), strict=True)}
            remember(self._path, self._where, here)
        self.count += len(missing)
        return [here[str(each)] for each in layers]

    def _measure(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        import onnx

        from lowrank.onnx_files.single_layers import side_by_side

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "layers.onnx"
            onnx.save(side_by_side(layers, self._asked["batch_size"]), model)
            with self._form.of(model) as formed:
                nodes = self._device.node_times(formed, self._asked)
        return [nodes[f"layer{index}"].milliseconds for index in range(len(layers))]


def remember(path: Path, where: str, found: dict[str, float]) -> None:
    """Add what was measured to a cache file that several jobs may add to at a time."""
    from lowrank.files import read_json, write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock is the operating system's, and ends with its process.
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_json(path) if path.exists() else {}
        known[where] = known.get(where, {}) | found
        write_json(path, known)


def _together(
    layers: Sequence[tuple[PlainLayer, Pair]], bytes_per_weight: int
) -> Iterator[list[tuple[PlainLayer, Pair]]]:
    """The layers of one model after the other; a layer of more bytes has its own."""
    some: list[tuple[PlainLayer, Pair]] = []
    size = 0
    for layer, input_map in layers:
        own = bytes_per_weight * layer.parameters
        if some and (len(some) == _IN_ONE_MODEL or size + own > _BYTES_IN_ONE_MODEL):
            yield some
            some, size = [], 0
        some.append((layer, input_map))
        size += own
    if some:
        yield some


def _compressed(
    table: LayerTable, layers: dict[str, str], rule: RankSettings, share: float
) -> Iterator[dict[str, Sequence[PlainLayer]]]:
    """For networks of about the target's cost, what each layer is replaced by, by its name."""
    import numpy as np

    from lowrank.factorize import grouped_sequence
    from lowrank.ranks import leave_negligible, rank_choices, taken_layers
    from lowrank.ranks.scale import cost_of

    taken = list(taken_layers(leave_negligible(table, rule.negligible), layers))
    for power in _WHOLE:
        sequences = {}
        for layer, method, full_ranks in taken:
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
    """All that a layer may be replaced by, and the layers as they are."""
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
