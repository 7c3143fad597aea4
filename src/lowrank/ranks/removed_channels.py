"""Costs of layers that lose output channels, because the layer behind them reads only some."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lowrank.core.layers import LayerTable, PlainLayer, sequence_macs, sequence_parameters
from lowrank.core.plans import PlannedLayer
from lowrank.factorize import get_factorization, grouped_sequence


def sequences_after(
    table: LayerTable, planned: Iterable[PlannedLayer]
) -> dict[str, tuple[PlainLayer, ...]]:
    """Return the plain layers of each layer of the network, by its name.

    Layers without a plan, and those that stay dense, have themselves. Output channels that no layer
    reads any more are left out.
    """
    replaced = {
        entry.name: grouped_sequence(
            get_factorization(entry.factorization), table[entry.name], entry.ranks
        )
        for entry in planned
        if not entry.is_dense
    }
    return table.sequences_with(replaced)


def network_macs(table: LayerTable, planned: Sequence[PlannedLayer]) -> tuple[int, int]:
    """Return the MACs of all layers of a network for one sample, before and after."""
    sequences = sequences_after(table, planned)
    after = sum(sequence_macs(sequences[layer.name], layer.input_map) for layer in table.layers)
    return sum(layer.dense_macs for layer in table.layers), after


def without_removed_channels(
    table: LayerTable, planned: Sequence[PlannedLayer]
) -> tuple[PlannedLayer, ...]:
    """Return the plans with the costs that layers have without the channels that nothing reads."""
    sequences = sequences_after(table, planned)
    shortened = {
        feeder.name
        for layer in table.layers
        if sequences[layer.name] and sequences[layer.name][0].selects
        for feeder in table.feeders(layer)
    }

    def counted(entry: PlannedLayer) -> PlannedLayer:
        layer, sequence = table[entry.name], sequences[entry.name]
        if not sequence:
            note = "removed with the branch that it belongs to"
        elif entry.name in shortened:
            channels = sequence[-1].out_channels
            note = f"{channels} of {layer.out_channels} output channels are left"
        else:
            return entry
        return replace(
            entry,
            parameters=(entry.parameters[0], sequence_parameters(sequence)),
            macs=(entry.macs[0], sequence_macs(sequence, layer.input_map)),
            notes=(*entry.notes, note),
        )

    return tuple(map(counted, planned))
