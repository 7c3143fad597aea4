"""Ranks in proportion to full ranks within a cost, for `ratio` and `sensitivity`."""

from collections.abc import Sequence
from math import prod

from lowrank.core.layers import Layer, sequence_macs, sequence_parameters
from lowrank.factorize import Factorization, grouped_sequence, one_group


def cost_of(layer: Layer, factorization: Factorization, ranks: Sequence[int], cost: str) -> int:
    """Return the cost of a layer's factors: `macs` for one image, or `parameters`."""
    sequence = grouped_sequence(factorization, layer, ranks)
    if cost == "macs":
        return sequence_macs(sequence, layer.input_map)
    return sequence_parameters(sequence)


def dense_cost(layer: Layer, cost: str) -> int:
    """Return the cost of an unfactored layer: `macs` for one image, or `parameters`."""
    return layer.dense_macs if cost == "macs" else layer.parameters


def ranks_of_size(
    layer: Layer, factorization: Factorization, full_ranks: Sequence[int], size: float
) -> tuple[int, ...]:
    """Return ranks in proportion to the full ranks, with `size` as their geometric mean.

    Each rank is at least 1 and at most the full rank.
    """
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
    """Return the largest ranks in proportion to the full ranks with a cost of at most `limit`.

    If even the smallest ranks cost more, all ranks are 1.
    """

    def ranks(size: float) -> tuple[int, ...]:
        return ranks_of_size(layer, factorization, full_ranks, size)

    low, high = 0.0, float(max(full_ranks))
    if cost_of(layer, factorization, ranks(high), cost) <= limit:
        return ranks(high)
    # Stop when no rank can change any more.
    while high - low > 0.1:
        middle = (low + high) / 2
        if cost_of(layer, factorization, ranks(middle), cost) <= limit:
            low = middle
        else:
            high = middle
    return ranks(low)
