"""From a layer and its weights to a line of the plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowrank.errors import unknown_name
from lowrank.factorize import (
    Factorization,
    get_factorization,
    grouped_sequence,
    kernel_of,
    one_group,
)
from lowrank.plan import Layer, PlannedLayer, sequence_macs, sequence_parameters
from lowrank.ranks.base import RankRule, RankSettings
from lowrank.ranks.vbmf import vbmf

RULES: dict[str, RankRule] = {"vbmf": vbmf}


def choose_ranks(
    layer: Layer,
    weight: np.ndarray,
    factorization: Factorization | str,
    settings: RankSettings | Mapping[str, Any],
) -> PlannedLayer:
    """Choose a layer's ranks, or say why it stays dense.

    Parameters
    ----------
    layer
        The layer, as the layer table holds it.
    weight
        Shape (T, S / g, D_h, D_w), or (T, S) for a linear layer; any float type.
    factorization
        A factorization, or its name.
    settings
        A RankSettings, or its fields.

    Returns
    -------
    PlannedLayer
        Dense, without ranks, where the factorization does not take the layer or the rule finds a
        rank of 0; dense, with the ranks that were found, where the factors would cost as many
        multiply-accumulates as the layer. A dense layer's costs are the same before and after.

    Raises
    ------
    UserError
        For an unknown name, a setting out of range, or a weight that does not fit the layer or
        is not finite.
    """
    if isinstance(factorization, str):
        factorization = get_factorization(factorization)
    if not isinstance(settings, RankSettings):
        settings = RankSettings(**settings)
    rule = _rule(settings.select)
    if reason := layer.not_factored or factorization.applies_to(layer):
        return _planned(layer, factorization, (), (), reason, ())
    kernel = kernel_of(layer, weight, name=layer.name)
    chosen = rule(layer, kernel, factorization, settings)
    if 0 in chosen:
        # At the least admissible rank instead, the layer would pass on next to nothing.
        reason = f"{settings.select} finds nothing but noise in its weights (rank 0)"
        return _planned(layer, factorization, (), chosen, reason, ())
    ranks, notes = _admissible(layer, factorization, chosen, settings)
    macs = sequence_macs(grouped_sequence(factorization, layer, ranks), layer.input_map)
    reason = None
    if macs >= layer.dense_macs:
        reason = (
            f"its factors at ranks ({', '.join(map(str, ranks))}) would take {macs:,} MACs, "
            f"the layer takes {layer.dense_macs:,}"
        )
    return _planned(layer, factorization, ranks, chosen, reason, notes)


def _rule(name: str) -> RankRule:
    try:
        return RULES[name]
    except KeyError:
        raise unknown_name("rule", name, RULES, where="select") from None


def _planned(
    layer: Layer,
    factorization: Factorization,
    ranks: tuple[int, ...],
    chosen: tuple[int, ...],
    dense_because: str | None,
    notes: tuple[str, ...],
) -> PlannedLayer:
    parameters, macs = layer.parameters, layer.dense_macs
    if not dense_because:
        sequence = grouped_sequence(factorization, layer, ranks)
        parameters, macs = sequence_parameters(sequence), sequence_macs(sequence, layer.input_map)
    return PlannedLayer(
        name=layer.name,
        factorization=factorization.name,
        ranks=ranks,
        chosen=chosen,
        parameters=(layer.parameters, parameters),
        macs=(layer.dense_macs, macs),
        dense_because=dense_because,
        notes=notes,
    )


def _admissible(
    layer: Layer, factorization: Factorization, chosen: tuple[int, ...], settings: RankSettings
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ranks that the factorization can take, and a sentence for every change.

    In this order: between the minimum and the full rank (the full rank wins); the nearest multiple
    of `multiple_of` in that range, unchanged where the range holds none; consistent with the
    factorization's other ranks.
    """
    ranks, notes = [], []
    full_ranks = factorization.full_ranks(one_group(layer))
    for name, rank, full in zip(factorization.rank_names, chosen, full_ranks, strict=True):
        minimum = min(settings.minimum, full)
        clamped = min(max(rank, minimum), full)
        if clamped != rank:
            bound = "minimum" if clamped > rank else "full rank"
            notes.append(f"{name} rank {rank} changed to {clamped}, the {bound}")
        rounded = _nearest_multiple(clamped, settings.multiple_of, minimum, full)
        if rounded != clamped:
            notes.append(
                f"{name} rank {clamped} rounded to {rounded}, a multiple of {settings.multiple_of}"
            )
        ranks.append(rounded)
    consistent = factorization.consistent(one_group(layer), tuple(ranks))
    for name, rank, lowered in zip(factorization.rank_names, ranks, consistent, strict=True):
        if lowered != rank:
            notes.append(
                f"{name} rank {rank} lowered to {lowered}, all that the other rank can use"
            )
    return consistent, tuple(notes)


def _nearest_multiple(rank: int, multiple: int, minimum: int, maximum: int) -> int:
    """The multiple nearest to the rank in [minimum, maximum], the higher of two; or the rank."""
    lowest, highest = -(-minimum // multiple), maximum // multiple
    if lowest > highest:
        return rank
    nearest = (2 * rank + multiple) // (2 * multiple)
    return multiple * min(max(nearest, lowest), highest)
