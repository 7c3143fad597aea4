"""Sequences of layers whose latency a device must measure for a target of milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowrank.core.layers import LayerTable, Pair, PlainLayer, narrowed
from lowrank.factorize import grouped_sequence
from lowrank.ranks.curves import rank_choices
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.scale import cost_of
from lowrank.ranks.taken_layers import taken_layers

if TYPE_CHECKING:
    from lowrank.ranks.rank_settings import RankSettings

# Some networks whose layers all have the same saving are measured in one piece. Their share of the
# original's MACs is about the target's share (or the middle of a search range) to these powers.
_SHARE_POWERS = (0.5, 1.0, 1.5)


def networks_near_target(
    table: LayerTable, layers: dict[str, str], settings: RankSettings, share: float
) -> Iterator[dict[str, Sequence[PlainLayer]]]:
    """Yield networks near the target's cost: the sequence of plain layers by replaced layer."""
    candidates = list(taken_layers(leave_negligible(table, settings.negligible_share), layers))
    for power in _SHARE_POWERS:
        sequences: dict[str, Sequence[PlainLayer]] = {}
        for layer, method, full_ranks in candidates:
            choices = rank_choices(layer, method, full_ranks, settings, in_proportion=True)
            if not choices:
                continue
            macs = np.array([cost_of(layer, method, ranks, "macs") for ranks in choices])
            nearest = np.abs(np.log(macs / (share**power * layer.dense_macs))).argmin()
            sequences[layer.name] = grouped_sequence(method, layer, choices[nearest])
        yield sequences


def possible_sequences(
    table: LayerTable, layers: dict[str, str], alternatives: list[str], settings: RankSettings
) -> Iterator[tuple[Sequence[PlainLayer], Pair]]:
    """Yield the original layers, and all sequences of plain layers that may replace a layer."""
    for layer in table.layers:
        if layer.kind != "transposed_conv":
            yield [layer], layer.input_map
    table = leave_negligible(table, settings.negligible_share)
    sequences: dict[str, list[Sequence[PlainLayer]]] = {}
    for layer, method, full_ranks in taken_layers(table, layers, alternatives):
        for ranks in rank_choices(layer, method, full_ranks, settings):
            sequence = grouped_sequence(method, layer, ranks)
            sequences.setdefault(layer.name, []).append(sequence)
            yield sequence, layer.input_map
    # Layers that lose output channels because the layer behind them reads only some of them. The
    # grid between the smallest and the full number is measured.
    for name, choices in sequences.items():
        read = [sequence[0].out_channels for sequence in choices if sequence[0].selects]
        for feeder in table.feeders(table[name]) if read else []:
            for sequence in ([feeder], *sequences.get(feeder.name, ())):
                yield narrowed(sequence, min(read)), feeder.input_map
