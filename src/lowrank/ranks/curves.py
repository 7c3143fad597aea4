"""What a network is expected to lose by each choice of ranks for one layer, and what that costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm

import numpy as np

from lowrank.config.ranks import RankSettings
from lowrank.core.layers import Layer
from lowrank.factorize import Factorization, Moments, group_kernels, one_group
from lowrank.factorize.moments import regularized, whitened
from lowrank.ranks.bounds import Bound
from lowrank.ranks.rule import Candidate
from lowrank.ranks.scale import cost_of

# At most so many ranks of each mode are looked at.
_RANKS = 48

# A layer is tried alone where its share of its dense cost is the target's share to these powers:
# around what layers will get.
_TRIALS = (0.5, 1.0, 1.5)

# Costs whose logarithms differ by less are taken for one where a loss is known.
_SAME_COST = 0.2

# Losses below this, in nats, are not told apart.
_NO_LOSS = 1e-7

# Least share of its squared norm that a decomposition is taken to leave out: rounding.
_NO_ERROR = 1e-12


@dataclass(frozen=True)
class Curve:
    """The choices of ranks for one layer by one factorization, from most to least costly.

    Parameters
    ----------
    layer
        As the layer table holds it.
    factorization
        What it would be factored by.
    ranks
        A tuple for each choice; none that costs more than another and keeps less.
    costs
        Shape (choices, bounds): each choice by each bound.
    left_out
        Shape (choices,), ascending: the logarithm of the relative squared error. Where that would
        take a decomposition for each choice, minus the logarithm of the first cost instead.
    """

    layer: Layer
    factorization: Factorization
    ranks: tuple[tuple[int, ...], ...]
    costs: np.ndarray
    left_out: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        """The names of the layer and of the factorization."""
        return self.layer.name, self.factorization.name

    def trials(
        self, bound: Bound, share: float, known: Collection[tuple[int, ...]] = ()
    ) -> list[tuple[int, ...]]:
        """The ranks at which to measure what the network loses by the layer alone.

        `bound` is the first one of the target, `share` that of the layers under it. None where the
        loss is known at about that cost.
        """
        dense, costs = bound.of_dense(self.layer), np.log(self.costs[:, 0])
        wanted = [np.log(dense * share**power) for power in _TRIALS]
        nearest = {int(np.abs(costs - each).argmin()) for each in wanted}
        at = costs[[index for index, ranks in enumerate(self.ranks) if ranks in known]]
        return [
            self.ranks[index]
            for index in sorted(nearest)
            if not (np.abs(at - costs[index]) < _SAME_COST).any()
        ]

    def losses(self, measured: Mapping[tuple[int, ...], float]) -> np.ndarray:
        """The loss expected of each choice, (choices,), from that measured for some of them.

        A straight line between logarithms; beyond the outermost ones as between the last two, but
        at least in proportion to what is left out and at most with its fourth power.
        """
        places = [place for place, ranks in enumerate(self.ranks) if ranks in measured]
        x = self.left_out[places]
        losses = [max(measured[self.ranks[place]], _NO_LOSS) for place in places]
        # Chance in the measurement must not let a worse approximation look better.
        y = np.maximum.accumulate(np.log(losses))
        rise = np.diff(y) / np.maximum(np.diff(x), 1e-9) if len(x) > 1 else np.ones(1)
        rise = np.clip(rise, 1.0, 4.0)
        found = np.interp(self.left_out, x, y)
        found += rise[0] * np.minimum(self.left_out - x[0], 0.0)
        found += rise[-1] * np.maximum(self.left_out - x[-1], 0.0)
        return np.exp(found)


def curve_of(
    candidate: Candidate,
    settings: RankSettings,
    bounds: Sequence[Bound],
    moments: Moments | None = None,
) -> Curve | None:
    """The choices of ranks that one factorization has for a layer; None where none saves anything.

    Ranks are multiples of `multiple_of` and at least `minimum`. With the moments of its inputs,
    what is left out is that of the layer's outputs rather than of its weights.
    """
    layer, method = candidate.layer, candidate.factorization
    kept = _kept(candidate, moments)
    choices = []
    for ranks in rank_choices(
        layer, method, candidate.full_ranks, settings, in_proportion=kept is None
    ):
        of_choice = [bound.of(layer, method, ranks) for bound in bounds]
        if kept is None:
            left_out = -np.log(of_choice[0])
        else:
            share = 1 - kept[tuple(rank - 1 for rank in ranks)] / max(kept.flat[-1], 1e-300)
            left_out = np.log(max(share, _NO_ERROR))
        choices.append((left_out, *of_choice, ranks))
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
    """As `Factorization.kept`, summed over the groups, in the norm of the outputs with moments."""
    total = None
    layer = one_group(candidate.layer)
    for number, kernel in enumerate(group_kernels(candidate.layer, candidate.kernel)):
        if moments is not None:
            covariance = regularized(moments.covariance[number])
            kernel, _ = whitened(candidate.factorization, layer, kernel, covariance)
        if (kept := candidate.factorization.kept(kernel)) is None:
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
    """The ranks that a layer may get: admissible ones with fewer multiply-accumulates than it has.

    Of every combination of modes, or `in_proportion` to the full ranks alone.
    """
    multiple = lcm(settings.multiple_of, factorization.rank_multiple)

    def admissible(full: int) -> list[int]:
        lowest = -(-min(settings.minimum, full) // multiple) * multiple
        ranks = list(range(max(lowest, multiple), full + 1, multiple)) or [full]
        if len(ranks) <= _RANKS:
            return ranks
        # Small ranks differ by more than large ones do.
        thinned = np.unique(np.geomspace(1, len(ranks), _RANKS).round().astype(int) - 1)
        return [ranks[index] for index in thinned]

    of_modes = [np.array(admissible(full)) for full in full_ranks]
    if in_proportion:
        shares = max(of_modes, key=lambda ranks: ranks[-1]) / max(full_ranks)
        modes = list(zip(of_modes, full_ranks, strict=True))
        combined = (
            [ranks[np.abs(ranks - share * full).argmin()] for ranks, full in modes]
            for share in shares
        )
    else:
        combined = product(*of_modes)
    group = one_group(layer)
    found = (factorization.consistent(group, tuple(map(int, ranks))) for ranks in combined)
    return [
        ranks
        for ranks in dict.fromkeys(found)
        # As `choose_ranks` would leave the others.
        if cost_of(layer, factorization, ranks, "macs") < layer.dense_macs
    ]


def _worthwhile(choices: Sequence[tuple]) -> list[tuple]:
    """Without those that leave out no less than another one and cost no less in any way."""
    front: list[tuple] = []
    for choice in sorted(choices):
        if not any(
            all(a <= b for a, b in zip(other[1:-1], choice[1:-1], strict=True)) for other in front
        ):
            front.append(choice)
    return front
