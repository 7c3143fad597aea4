"""Curves of expected loss and cost over the choices of ranks for one layer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import Any

import numpy as np

from lowrank.core.layers import Layer
from lowrank.factorize import Factorization, Moments, group_kernels, one_group
from lowrank.factorize.moments import regularized, whitened
from lowrank.ranks.bounds import Bound
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import Candidate
from lowrank.ranks.scale import cost_of

# Maximum number of ranks that are considered for each mode.
_MAX_RANKS = 48

# Maximum number of channel counts that are considered for a layer whose channels may be removed.
_MAX_CHANNEL_COUNTS = 16

# A layer is measured alone at costs around what layers will get: its dense cost times the target's
# share to these powers.
_TRIAL_POWERS = (0.5, 1.0, 1.5)

# Two costs count as the same if their logarithms differ by less than this. A loss measured at one
# cost is then not measured at the other.
_SAME_COST = 0.2

# Lower limit of a cost, for its logarithm.
_NO_COST = 1e-12

# Losses below this value, in the unit of the divergence, are treated as equal.
_NO_LOSS = 1e-7

# Lower limit of the relative squared error of a decomposition: rounding.
_NO_ERROR = 1e-12


@dataclass(frozen=True)
class Curve:
    """The choices of ranks for one layer with one factorization, in order of decreasing cost.

    Parameters
    ----------
    layer
        The layer, as in the layer table.
    factorization
        The factorization.
    ranks
        Ranks of each choice. No choice costs more than another one and keeps less.
    costs
        Shape (choices, bounds): cost of each choice for each bound.
    left_out
        Shape (choices,), ascending: the logarithm of the relative squared error. If this would need
        a decomposition for each choice, it is minus the logarithm of the first cost instead.
    """

    layer: Layer
    factorization: Factorization
    ranks: tuple[tuple[int, ...], ...]
    costs: np.ndarray
    left_out: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        """Names of the layer and of the factorization."""
        return self.layer.name, self.factorization.name

    def trials(
        self, bound: Bound, share: float, known: Collection[tuple[int, ...]] = ()
    ) -> list[tuple[int, ...]]:
        """Return the ranks at which to measure the loss with only this layer decomposed.

        `bound` is the first bound of the target, `share` the share of the layers for it. Ranks are
        left out if a loss at about the same cost is known.
        """
        # A layer without cost is as good as any small one.
        dense, costs = bound.of_dense(self.layer), np.log(np.maximum(self.costs[:, 0], _NO_COST))
        wanted = [np.log(dense * share**power) for power in _TRIAL_POWERS]
        nearest = {int(np.abs(costs - cost).argmin()) for cost in wanted}
        known_costs = costs[[index for index, ranks in enumerate(self.ranks) if ranks in known]]
        return [
            self.ranks[index]
            for index in sorted(nearest)
            if not (np.abs(known_costs - costs[index]) < _SAME_COST).any()
        ]

    def losses(self, measured: Mapping[tuple[int, ...], float]) -> np.ndarray:
        """Return the expected loss of each choice, (choices,), from the measured losses of some.

        The logarithm of the loss is interpolated linearly over `left_out`. Outside the measured
        range, the line continues with the slope of the last two points, limited to slopes from 1 to
        4. A slope of 1 means that the loss is proportional to what is left out; 4 means its fourth
        power.
        """
        measured_indices = [index for index, ranks in enumerate(self.ranks) if ranks in measured]
        x = self.left_out[measured_indices]
        losses = [max(measured[self.ranks[index]], _NO_LOSS) for index in measured_indices]
        # Measurement noise must not make a worse approximation look better.
        y = np.maximum.accumulate(np.log(losses))
        slope = np.diff(y) / np.maximum(np.diff(x), 1e-9) if len(x) > 1 else np.ones(1)
        slope = np.clip(slope, 1.0, 4.0)
        log_losses = np.interp(self.left_out, x, y)
        log_losses += slope[0] * np.minimum(self.left_out - x[0], 0.0)
        log_losses += slope[-1] * np.maximum(self.left_out - x[-1], 0.0)
        expected: np.ndarray = np.exp(log_losses)
        return expected


def curve_of(
    candidate: Candidate,
    settings: RankSettings,
    bounds: Sequence[Bound],
    moments: Moments | None = None,
) -> Curve | None:
    """Return the choices of ranks for a layer with one factorization; None if none saves anything.

    Ranks are multiples of `multiple_of` and at least `minimum`. With the moments of the layer's
    inputs, the error is that of the outputs instead of the weights.
    """
    layer, method = candidate.layer, candidate.factorization
    kept = _kept(candidate, moments)
    choices = []
    for ranks in rank_choices(
        layer, method, candidate.full_ranks, settings, in_proportion=kept is None
    ):
        choice_costs = [bound.of(layer, method, ranks) for bound in bounds]
        if kept is None:
            left_out = -np.log(choice_costs[0])
        else:
            share = 1 - kept[tuple(rank - 1 for rank in ranks)] / max(kept.flat[-1], 1e-300)
            left_out = np.log(max(share, _NO_ERROR))
        choices.append((left_out, *choice_costs, ranks))
    choices = _worthwhile(choices)
    if not choices:
        return None
    return Curve(
        layer,
        method,
        tuple(choice[-1] for choice in choices),
        np.array([choice[1:-1] for choice in choices], float),
        np.array([choice[0] for choice in choices]),
    )


def _kept(candidate: Candidate, moments: Moments | None) -> np.ndarray | None:
    """Sum `Factorization.kept` over the groups; with moments, in the norm of the outputs."""
    total = None
    layer = one_group(candidate.layer)
    for number, kernel in enumerate(group_kernels(candidate.layer, candidate.kernel)):
        kept = None
        if moments is not None:
            covariance = regularized(moments.covariance[number])
            kept = candidate.factorization.kept_of_outputs(kernel, covariance)
            if kept is None:
                kernel, _ = whitened(candidate.factorization, layer, kernel, covariance)
        if kept is None:
            kept = candidate.factorization.kept(kernel)
        if kept is None:
            return None
        total = kept if total is None else total + kept
    return total


def rank_choices(
    layer: Layer,
    factorization: Factorization,
    full_ranks: Sequence[int],
    settings: RankSettings,
    *,
    in_proportion: bool = False,
) -> list[tuple[int, ...]]:
    """Return the admissible ranks of a layer whose factors have fewer MACs than the layer.

    These are all combinations over the modes, or with `in_proportion` only ranks in proportion to
    the full ranks.
    """
    multiple, minimum = factorization.rank_multiple, 1
    if factorization.ranks_are_widths:
        multiple, minimum = lcm(settings.multiple_for(layer), multiple), settings.minimum

    def admissible(full: int, *, counts_inputs: bool) -> list[int]:
        lowest = -(-min(minimum, full) // multiple) * multiple
        ranks = list(range(max(lowest, multiple), full + 1, multiple)) or [full]
        if counts_inputs:
            # Each one is considered together with each choice for the layer before, so there are
            # fewer. The difference to all channels counts.
            return ranks[:: -(-len(ranks) // _MAX_CHANNEL_COUNTS)]
        if len(ranks) <= _MAX_RANKS:
            return ranks
        # Relative differences are larger between small ranks, so these are spaced more densely.
        thinned = np.unique(np.geomspace(1, len(ranks), _MAX_RANKS).round().astype(int) - 1)
        return [ranks[index] for index in thinned]

    ranks_of_modes = [
        np.array(admissible(full, counts_inputs=factorization.removes_channels and not mode))
        for mode, full in enumerate(full_ranks)
    ]
    if in_proportion:
        shares = max(ranks_of_modes, key=lambda ranks: ranks[-1]) / max(full_ranks)
        modes = list(zip(ranks_of_modes, full_ranks, strict=True))
        combined: Iterable[Iterable[int]] = (
            [ranks[np.abs(ranks - share * full).argmin()] for ranks, full in modes]
            for share in shares
        )
    else:
        combined = product(*ranks_of_modes)
    group = one_group(layer)
    candidates = (factorization.consistent(group, tuple(map(int, ranks))) for ranks in combined)
    return [
        ranks
        for ranks in dict.fromkeys(candidates)
        # `choose_ranks` would leave the layer dense at the other ranks.
        if cost_of(layer, factorization, ranks, "macs") < layer.dense_macs
    ]


def _worthwhile(choices: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Remove choices that another one beats: no larger error, and no higher cost for any bound."""
    front: list[tuple[Any, ...]] = []
    for choice in sorted(choices):
        if not any(
            all(cost <= limit for cost, limit in zip(other[1:-1], choice[1:-1], strict=True))
            for other in front
        ):
            front.append(choice)
    return front
