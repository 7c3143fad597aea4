"""Choice of the ranks of one layer, with all adjustments, as an entry of the plan."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowrank.core.layers import Layer, sequence_macs, sequence_parameters
from lowrank.core.plans import Factored, PlannedLayer
from lowrank.errors import UserError
from lowrank.factorize import (
    Factorization,
    get_factorization,
    grouped_sequence,
    kernel_of,
    one_group,
)
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import Candidate, rule_of


def choose_ranks(
    layer: Layer,
    weight: np.ndarray,
    factorization: Factorization | str,
    settings: RankSettings | Mapping[str, Any],
    *,
    factored: Factored | None = None,
    stages_left: int = 1,
    shared: Mapping[str, tuple[int, ...]] | None = None,
) -> PlannedLayer:
    """Choose a layer's ranks, or state why it stays as it is.

    Parameters
    ----------
    layer
        The layer, as in the layer table.
    weight
        Shape (T, S / g, D_h, D_w), or (T, S D_h D_w) for a linear layer; any float type. For a
        factored layer, the product of its factors.
    factorization
        A factorization, or its name.
    settings
        A RankSettings, or its fields.
    factored
        Factors that have already replaced the layer; their ranks are then the largest possible
        ranks.
    stages_left
        Number of rounds, including this one, until the rule's ranks are reached. The ranks decrease
        by the same factor in each round, for a rule whose ranks are a goal.
    shared
        Ranks of each layer by its name, from a rule that looks at all layers.

    Returns
    -------
    PlannedLayer
        If the factorization does not apply to the layer or the rule returns a rank of 0, the layer
        stays as it is, without ranks. If the factors would need at least as many MACs as the layer,
        it stays as it is, with the chosen ranks. Its costs are then the same before and after.

    Raises UserError for an unknown name, a setting out of range, or a weight that does not fit the
    layer or is not finite.
    """
    if isinstance(factorization, str):
        factorization = get_factorization(factorization)
    settings = rank_settings(settings)
    outcome = _Outcome(layer, factorization, factored)
    if reason := layer.not_factored or factorization.applies_to(layer):
        return outcome.kept(reason)
    candidate = _candidate(layer, weight, factorization, factored, shared)
    rule = rule_of(settings)
    chosen = rule.ranks(candidate, settings)
    if chosen is None:
        return outcome.kept(rule.no_ranks)
    chosen = tuple(
        _weakened(_of_stage(rank, full, stages_left if rule.is_goal else 1), full, settings)
        for rank, full in zip(chosen, candidate.full_ranks, strict=True)
    )
    return _entry_at(chosen, candidate, settings, outcome)


def _entry_at(
    chosen: tuple[int, ...], candidate: Candidate, settings: RankSettings, outcome: "_Outcome"
) -> PlannedLayer:
    """Return the entry of the plan for a layer with these ranks, if its factors save something."""
    if 0 in chosen:
        # With the smallest admissible rank instead, the layer would pass on almost no information.
        reason = f"{settings.select} finds only noise in its weights (rank 0)"
        return outcome.kept(reason, chosen=chosen)
    ranks, notes = _admissible(candidate, chosen, settings)
    layer, factorization = candidate.layer, candidate.factorization
    macs = sequence_macs(grouped_sequence(factorization, layer, ranks), layer.input_map)
    if macs >= outcome.macs_now:
        reason = (
            f"its factors at ranks ({', '.join(map(str, ranks))}) would need {macs:,} MACs, "
            f"the layer needs {outcome.macs_now:,}"
        )
        return outcome.kept(reason, chosen=chosen, ranks=ranks, notes=notes)
    return outcome.factored_at(ranks, chosen, notes)


def _candidate(
    layer: Layer,
    weight: np.ndarray,
    factorization: Factorization,
    factored: Factored | None,
    shared: Mapping[str, tuple[int, ...]] | None,
) -> Candidate:
    if factored and factored.factorization != factorization.name:
        raise UserError(
            f"layer '{layer.name}' is already factored by {factored.factorization} and cannot be "
            f"factored further by {factorization.name}. Use the same factorization for it in every "
            "stage."
        )
    kernel = kernel_of(layer, weight, name=layer.name)
    full_ranks = factored.ranks if factored else factorization.full_ranks(one_group(layer))
    return Candidate(layer, kernel, factorization, full_ranks, factored is not None, shared)


def _of_stage(goal: int, full: int, stages_left: int) -> int:
    """Return the rank of this stage; each stage left multiplies the rank by the same factor."""
    if stages_left <= 1:
        return goal
    if goal > full:
        return full
    return round(float(full * (goal / full) ** (1 / stages_left)))


def _weakened(rank: int, full: int, settings: RankSettings) -> int:
    # Rounded first, because 0.1 x 30 is slightly more than 3 in floating point and must not become
    # 4.
    return rank + math.ceil(round(settings.weakening * (full - rank), 9))


class _Outcome:
    """Builds the entry of the plan.

    The costs before are those of the dense layer; the costs after are those of this plan.
    """

    def __init__(
        self, layer: Layer, factorization: Factorization, factored: Factored | None
    ) -> None:
        self._layer, self._factorization = layer, factorization
        self._parameters_now, self.macs_now = layer.parameters, layer.dense_macs
        if factored:
            self._parameters_now = sequence_parameters(factored.sequence)
            self.macs_now = sequence_macs(factored.sequence, layer.input_map)

    def kept(
        self,
        reason: str,
        *,
        chosen: tuple[int, ...] = (),
        ranks: tuple[int, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> PlannedLayer:
        """Return the entry for a layer that stays as it is."""
        costs = self._parameters_now, self.macs_now
        return self._entry(ranks, chosen, notes, costs, reason)

    def factored_at(
        self, ranks: tuple[int, ...], chosen: tuple[int, ...], notes: tuple[str, ...]
    ) -> PlannedLayer:
        """Return the entry for a layer that is replaced by factors of those ranks."""
        sequence = grouped_sequence(self._factorization, self._layer, ranks)
        costs = sequence_parameters(sequence), sequence_macs(sequence, self._layer.input_map)
        return self._entry(ranks, chosen, notes, costs, None)

    def _entry(
        self,
        ranks: tuple[int, ...],
        chosen: tuple[int, ...],
        notes: tuple[str, ...],
        costs: tuple[int, int],
        dense_because: str | None,
    ) -> PlannedLayer:
        return PlannedLayer(
            name=self._layer.name,
            factorization=self._factorization.name,
            ranks=ranks,
            chosen=chosen,
            parameters=(self._layer.parameters, costs[0]),
            macs=(self._layer.dense_macs, costs[1]),
            dense_because=dense_because,
            notes=notes,
        )


def _admissible(
    candidate: Candidate, chosen: tuple[int, ...], settings: RankSettings
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return ranks that the factorization allows, and a note for every change.

    The adjustments, in this order: limit each rank to the range from the minimum to full rank (full
    rank wins); round to a multiple of `multiple_of` in that range, or keep the rank if the range
    has no multiple; make the ranks consistent with each other.
    """
    ranks, notes = [], []
    factorization = candidate.factorization
    multiple, lowest = factorization.rank_multiple, 1
    if factorization.ranks_are_widths:
        multiple, lowest = (
            math.lcm(settings.multiple_for(candidate.layer), multiple),
            settings.minimum,
        )
    names = [_label(name) for name in factorization.rank_names]
    for name, rank, full in zip(names, chosen, candidate.full_ranks, strict=True):
        minimum = min(lowest, full)
        clamped = min(max(rank, minimum), full)
        if clamped != rank:
            bound = "minimum" if clamped > rank else "full rank"
            notes.append(f"{name} {rank} changed to {clamped}, the {bound}")
        rounded = _rounded(clamped, multiple, minimum, full, settings.rounding)
        if rounded != clamped:
            notes.append(f"{name} {clamped} rounded to {rounded}, a multiple of {multiple}")
        ranks.append(rounded)
    consistent = factorization.consistent(one_group(candidate.layer), tuple(ranks))
    for name, rank, lowered in zip(names, ranks, consistent, strict=True):
        if lowered != rank:
            notes.append(
                f"{name} {rank} changed to {lowered}, the largest that {factorization.name} can use"
            )
    return consistent, tuple(notes)


def _label(name: str) -> str:
    """Return the name of a rank for messages; the only rank of a factorization is just "rank"."""
    return name if name == "rank" else f"{name} rank"


def _rounded(rank: int, multiple: int, minimum: int, maximum: int, rounding: str) -> int:
    """Return a multiple in [minimum, maximum], or the rank itself if there is none.

    `nearest` rounds up if two multiples are equally near.
    """
    lowest, highest = -(-minimum // multiple), maximum // multiple
    if lowest > highest:
        return rank
    offset = {"down": 0, "nearest": multiple / 2, "up": multiple - 1}[rounding]
    quotient = int((rank + offset) // multiple)
    return multiple * min(max(quotient, lowest), highest)
