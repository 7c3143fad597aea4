"""Ranks of one size after another, from a cost: what `ratio` and `sensitivity` share."""

from collections.abc import Sequence
from math import prod

from lowrank.core.layers import Layer, sequence_macs, sequence_parameters
from lowrank.factorize import Factorization, grouped_sequence, one_group


def cost_of(layer: Layer, factorization: Factorization, ranks: Sequence[int], cost: str) -> int:
    """What the factors of a layer cost: `macs` for one image, or `parameters`."""
    sequence = grouped_sequence(factorization, layer, ranks)
    if cost == "macs":
        return sequence_macs(sequence, layer.input_map)
    return sequence_parameters(sequence)


def dense_cost(layer: Layer, cost: str) -> int:
    """What a layer costs as it is: `macs` for one image, or `parameters`."""
    return layer.dense_macs if cost == "macs" else layer.parameters


def ranks_of_size(
    layer: Layer, factorization: Factorization, full_ranks: Sequence[int], size: float
) -> tuple[int, ...]:
    """Ranks whose geometric mean is `size`, in proportion to the full ranks, from 1 to those."""
    mean = prod(full_ranks) ** (1 / len(full_ranks))
    ranks = [min(max(round(size * full / mean), 1), full) for full in full_ranks]
    return factorization.consistent(one_group(layer), tuple(ranks))


def ranks_within(
    layer: Layer,
    factorization: Factorization,
    full_ranks: Sequence[int],
    *,
    limit: float,
    cost: str,
) -> tuple[int, ...]:
    """The largest ranks in proportion to the full ranks that cost at most `limit`, or all 1."""

    def ranks(size: float) -> tuple[int, ...]:
        return ranks_of_size(layer, factorization, full_ranks, size)

    low, high = 0.0, float(max(full_ranks))
    if cost_of(layer, factorization, ranks(high), cost) <= limit:
        return ranks(high)
    # Until no rank can change any more.
    while high - low > 0.1:
        middle = (low + high) / 2
        if cost_of(layer, factorization, ranks(middle), cost) <= limit:
            low = middle
        else:
            high = middle
    return ranks(low)
