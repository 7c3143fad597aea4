"""Measure on a device what layers take at the ranks that they may get."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.steps.common import Json, Step, say

if TYPE_CHECKING:
    from lowrank.devices import Device
    from lowrank.plan import LayerTable, Pair, PlainLayer

# Convolutions measured in one model: few enough to be held in memory together.
_IN_ONE_MODEL = 40

# What ONNX Runtime calls the nodes that the layer table knows; all others are the rest.
_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")

# How long the nodes of one model are measured.
_MEASURED = {"warmup_seconds": 0.2, "repeats": 20, "seconds": 0.5}


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="The network, ONNX.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--layers", type=Json(), required=True, help="Factorization by layer, JSON.")
@click.option("--alternatives", type=Json(), default="[]", help="Further ones, a JSON list.")
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option("--device", required=True, help="Its name under `benchmark` in params.yaml.")
@click.option("--device-settings", type=Json(), required=True, help="benchmark.<device>, JSON.")
@click.option("--cache", type=Path, required=True, help="What was measured before; is added to.")
@click.option("--output", type=Path, required=True, help="Output: ms of layers, JSON.")
def profile_layers(
    original: Path,
    table: Path,
    layers: dict[str, str],
    alternatives: list[str],
    settings: dict[str, Any],
    device: str,
    device_settings: dict[str, Any],
    cache: Path,
    output: Path,
) -> None:
    """Measure on a device what layers take at the ranks that they may get."""
    from lowrank.devices import DeviceError, create_device
    from lowrank.errors import UserError
    from lowrank.files import read_json, write_json
    from lowrank.latency import Latencies, grids_for
    from lowrank.plan import LayerTable

    network = LayerTable.from_json(read_json(table))
    grids = grids_for(_sequences(network, layers, alternatives, settings))
    asked = device_settings | _MEASURED
    try:
        there = create_device(device, device_settings)
        nodes = there.node_times(original, asked)
        rest = sum(n.milliseconds for n in nodes.values() if n.operator not in _LAYERS)
        measured = _Measured(there, asked, cache)
        found = Latencies.measured(rest, grids, measured)
    except DeviceError as error:
        raise UserError(f"benchmark.{device}: {error}") from error
    write_json(output, found.to_json())
    known = [layer for layer in network.layers if layer.kind != "transposed_conv"]
    expected = rest + sum(found.milliseconds([layer], layer.input_map) for layer in known)
    whole = sum(node.milliseconds for node in nodes.values())
    say(
        f"{measured.count} convolutions measured; the network as it is: {expected:.3f} ms by its "
        f"layers, {whole:.3f} ms in one piece"
    )


class _Measured:
    """Measures plain layers, and remembers those of the same device and runtime."""

    def __init__(self, device: Device, asked: dict[str, Any], cache: Path) -> None:
        from lowrank.files import read_json

        self._device, self._asked, self._path = device, asked, cache
        self._where = str([*sorted(device.environment(asked).items()), asked["batch_size"]])
        self._known = read_json(cache) if cache.exists() else {}
        self.count = 0

    def __call__(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        """Milliseconds of each layer on its map."""
        from lowrank.files import write_json

        here = self._known.setdefault(self._where, {})
        missing = [each for each in dict.fromkeys(layers) if str(each) not in here]
        for start in range(0, len(missing), _IN_ONE_MODEL):
            some = missing[start : start + _IN_ONE_MODEL]
            here |= {str(each): ms for each, ms in zip(some, self._measure(some), strict=True)}
            write_json(self._path, self._known)
        self.count += len(missing)
        return [here[str(each)] for each in layers]

    def _measure(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        import onnx

        from lowrank.networks.plain_onnx import side_by_side

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "layers.onnx"
            onnx.save(side_by_side(layers, self._asked["batch_size"]), model)
            nodes = self._device.node_times(model, self._asked)
        return [nodes[f"layer{index}"].milliseconds for index in range(len(layers))]


def _sequences(
    table: LayerTable, layers: dict[str, str], alternatives: list[str], settings: dict[str, Any]
) -> Iterator[tuple[Sequence[PlainLayer], Pair]]:
    """All that a layer may be replaced by, and the layers as they are."""
    from lowrank.factorize import grouped_sequence
    from lowrank.ranks import leave_negligible, rank_choices, taken_layers
    from lowrank.ranks.base import rank_settings

    rule = rank_settings(settings)
    for layer in table.layers:
        if layer.kind != "transposed_conv":
            yield [layer], layer.input_map
    table = leave_negligible(table, rule.negligible)
    for layer, method, full_ranks in taken_layers(table, layers, alternatives):
        for ranks in rank_choices(layer, method, full_ranks, rule):
            yield grouped_sequence(method, layer, ranks), layer.input_map


if __name__ == "__main__":
    profile_layers()
