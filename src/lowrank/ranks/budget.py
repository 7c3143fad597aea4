"""Ranks from a target: one choice for all layers that loses least at the cost asked for.

For each layer and factorization there is a curve: what the network is expected to lose by each
choice of ranks, against what it costs. The loss is measured for a few choices, with that layer
alone decomposed, and follows the error of the decomposition between them. One choice for each layer
under a bound on their sum is a multiple-choice knapsack, which an integer program solves exactly.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import lcm

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from lowrank.errors import UserError
from lowrank.factorize import (
    Decomposition,
    Factorization,
    Moments,
    decompose,
    group_kernels,
    one_group,
)
from lowrank.factorize.moments import regularised, whitened
from lowrank.params import RankSettings
from lowrank.plan import Layer, LayerTable, Share
from lowrank.ranks.base import Candidate
from lowrank.ranks.scale import cost_of, dense_cost

# At most so many ranks of each mode are looked at.
_RANKS = 48

# A layer is tried alone where its share of its dense cost is the target's share to these powers:
# around what layers will get.
_TRIALS = (0.5, 1.0, 1.5)

# At most so many choices for all layers are tried; one that loses no more than what was expected
# and this share of it is the last.
_CHOICES = 6
_SURPRISE = 0.1

# By so much the solver may overstep a bound, and a bit more.
_TOLERANCE = 2e-6

# Losses below this, in nats, are not told apart.
_NO_LOSS = 1e-7

# Least share of its squared norm that a decomposition is taken to leave out: rounding.
_NO_ERROR = 1e-12


def budget(candidate: Candidate, settings: RankSettings) -> tuple[int, ...] | None:
    """The ranks that `meet_target` gave the layer before the first round, passed as `table`.

    None where the target is met best with the layer as it is. Raises UserError without a table.
    """
    if not settings.table:
        raise UserError(
            "select: 'budget' needs losses, which are measured on images: by the step "
            "select_ranks, or by `lowrank.compress(..., images=...)`. Without images take another "
            "rule."
        )
    return settings.table.get(candidate.layer.name) or None


@dataclass(frozen=True)
class Trial:
    """A layer, and one factorization that it may get.

    Parameters
    ----------
    candidate
        The layer, its kernel and the factorization.
    bias
        Shape (T,), or None.
    moments
        Of its inputs: the factors then keep its outputs. None: they keep its weights.
    """

    candidate: Candidate
    bias: np.ndarray | None = None
    moments: Moments | None = None

    def at(self, ranks: tuple[int, ...]) -> tuple[str, Decomposition]:
        """The layer's name, and what it would be replaced by at those ranks."""
        layer, method = self.candidate.layer, self.candidate.factorization
        kernel = self.candidate.kernel
        return layer.name, decompose(method, layer, kernel, self.bias, ranks, self.moments)


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
        Shape (choices, costs), in the order of the target's entries.
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

    def trials(self, settings: RankSettings) -> list[tuple[int, ...]]:
        """The ranks at which to measure what the network loses by the layer alone."""
        cost, share = settings.target.entries()[0]
        dense = dense_cost(self.layer, cost)
        wanted = [np.log(dense * share**power) for power in _TRIALS]
        nearest = {int(np.abs(np.log(self.costs[:, 0]) - each).argmin()) for each in wanted}
        return [self.ranks[index] for index in sorted(nearest)]

    def losses(self, measured: Mapping[tuple[int, ...], float]) -> np.ndarray:
        """The loss expected of each choice, (choices,), from that measured for some of them.

        A straight line between logarithms; beyond the outermost ones as between the last two, but
        at least in proportion to what is left out and at most with its fourth power.
        """
        places = sorted(self.ranks.index(ranks) for ranks in measured)
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
    candidate: Candidate, settings: RankSettings, moments: Moments | None = None
) -> Curve | None:
    """The choices of ranks that one factorization has for a layer; None where none saves anything.

    Ranks are multiples of `multiple_of` and at least `minimum`. With the moments of its inputs,
    what is left out is that of the layer's outputs rather than of its weights.
    """
    layer, method = candidate.layer, candidate.factorization
    kept = _kept(candidate, moments)
    costs = [name for name, _ in settings.target.entries()]
    choices = []
    for ranks in _choices(candidate, settings, in_proportion=kept is None):
        macs = cost_of(layer, method, ranks, "macs")
        # `choose_ranks` leaves such a layer as it is.
        if macs >= layer.dense_macs:
            continue
        of_choice = [
            macs if name == "macs" else cost_of(layer, method, ranks, name) for name in costs
        ]
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


def for_target(
    table: LayerTable,
    trials: Sequence[Callable[[], Trial]],
    settings: RankSettings,
    measured: Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]],
    *,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Share]:
    """Try each layer alone, choose for all of them, and try what was chosen, until that holds.

    A choice that looks good because its loss was expected too low is measured, and the next choice
    made with that known. Of all choices that were measured, the best is taken.

    Parameters
    ----------
    table
        The network.
    trials
        Reads each layer, once for each factorization that it may get; only one at a time is kept.
    settings
        With the `target`.
    measured
        What the network loses, in nats, by each of several replacements of one layer.
    say
        Is told what was measured.

    Returns
    -------
    dict
        What each layer gets, by its name; layers that no ranks make cheaper are left out. Raises
        UserError as `meet_target` does.
    """

    def told(curve: Curve, read: Callable[[], Trial], choices: Sequence[tuple[int, ...]]) -> None:
        trial = read()
        found = dict(zip(choices, measured(trial.at(ranks) for ranks in choices), strict=True))
        losses[curve.key] |= found
        each = (f"{loss:.2g} nats at {', '.join(map(str, ranks))}" for ranks, loss in found.items())
        say(f"{curve.layer.name} alone by {curve.factorization.name}: loses {'; '.join(each)}")

    curves: dict[tuple[str, str], tuple[Curve, Callable[[], Trial]]] = {}
    losses: dict[tuple[str, str], dict[tuple[int, ...], float]] = {}
    for read in trials:
        trial = read()
        if curve := curve_of(trial.candidate, settings, trial.moments):
            curves[curve.key], losses[curve.key] = (curve, read), {}
            told(curve, read, curve.trials(settings))
    chosen: list[dict[str, Share]] = []
    for _ in range(_CHOICES):
        expected = [(curve, curve.losses(losses[key])) for key, (curve, _) in curves.items()]
        choice = meet_target(table, expected, settings)
        factored = {
            (name, share.factorization): share for name, share in choice.items() if share.ranks
        }
        for key, share in factored.items():
            if share.ranks not in losses[key]:
                told(*curves[key], [share.ranks])
        found = {
            name: replace(share, loss=losses[name, share.factorization][share.ranks])
            for (name, _), share in factored.items()
        }
        chosen.append(choice | found)
        if _total_loss(chosen[-1]) <= (1 + _SURPRISE) * _total_loss(choice):
            break
    return min(chosen, key=_total_loss)


def _total_loss(choice: Mapping[str, Share]) -> float:
    return sum(share.loss for share in choice.values())


def meet_target(
    table: LayerTable,
    curves: Sequence[tuple[Curve, np.ndarray]],
    settings: RankSettings,
) -> dict[str, Share]:
    """The choice for each layer that loses least in all, at costs within the target.

    Parameters
    ----------
    table
        The network; layers without a curve stay as they are.
    curves
        Of any number of factorizations for each layer, with the loss expected of each choice.
    settings
        With the `target`: shares of what the whole network costs.

    Returns
    -------
    dict
        What each layer with a curve gets, by its name.

    Raises
    ------
    UserError
        Where no choice meets the target: with the nearest that can be met, and the layers that hold
        it back.
    """
    # Of the layer as it is, the first of its factorizations stands for all.
    first = {curve.layer.name: curve.factorization.name for curve, _ in reversed(curves)}
    names = [layer.name for layer in table.layers if layer.name in first]
    entries = settings.target.entries()
    limits = np.array([share * _total(table, cost) for cost, share in entries])
    limits *= 1 - _TOLERANCE
    layers = list(range(len(names)))
    shares = [Share(first[name], (), 0.0) for name in names]
    costs = [[dense_cost(table[name], cost) for cost, _ in entries] for name in names]
    for curve, losses in curves:
        for ranks, of_choice, loss in zip(curve.ranks, curve.costs, losses, strict=True):
            layers.append(names.index(curve.layer.name))
            shares.append(Share(curve.factorization.name, ranks, float(loss)))
            costs.append(of_choice)
    costs = np.array(costs, float).reshape(len(layers), len(entries))
    fixed = np.array(
        [
            sum(dense_cost(layer, cost) for layer in table.layers if layer.name not in names)
            for cost, _ in entries
        ]
    )
    _check_reachable(table, names, np.array(layers), costs, fixed, entries)
    count = len(layers)
    one_each = sparse.csr_array(
        (np.ones(count), (layers, np.arange(count))), shape=(len(names), count)
    )
    found = milp(
        # Far above the solver's tolerance, which is absolute.
        c=np.array([share.loss for share in shares]) * 1e4,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.T / limits[:, None], -np.inf, 1 - fixed / limits),
        ],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    if found.x is None:
        both = " and ".join(f"{cost} {share:g}" for cost, share in entries)
        raise UserError(
            f"ranks.target: {both} cannot be met together, each alone can. Raise one of them."
        )
    return {names[layers[index]]: shares[index] for index in np.flatnonzero(found.x > 0.5)}


def _total(table: LayerTable, cost: str) -> int:
    return sum(dense_cost(layer, cost) for layer in table.layers)


def _check_reachable(
    table: LayerTable,
    names: Sequence[str],
    layers: np.ndarray,
    costs: np.ndarray,
    fixed: np.ndarray,
    entries: Sequence[tuple[str, float]],
) -> None:
    """Raise UserError for an entry of the target that the cheapest choices do not meet."""
    for column, (cost, share) in enumerate(entries):
        total = _total(table, cost)
        least = {
            name: costs[layers == number, column].min() for number, name in enumerate(names)
        } | {
            layer.name: dense_cost(layer, cost) for layer in table.layers if layer.name not in names
        }
        nearest = sum(least.values())
        if nearest > (1 - _TOLERANCE) * share * total:
            worst = sorted(least, key=least.get, reverse=True)[:3]
            held = ", ".join(
                f"{name} ({least[name] / total:.4f}{'' if name in names else ', stays as it is'})"
                for name in worst
            )
            raise UserError(
                f"ranks.target.{cost}: {share:g} of the network's {total:,} cannot be met; the "
                f"nearest that can is {nearest / total:.4f}. Most is held by {held}. Raise the "
                "target, lower `multiple_of` or `minimum`, or let the method take more layers."
            )


def _kept(candidate: Candidate, moments: Moments | None) -> np.ndarray | None:
    """As `Factorization.kept`, summed over the groups, in the norm of the outputs with moments."""
    total = None
    layer = one_group(candidate.layer)
    for number, kernel in enumerate(group_kernels(candidate.layer, candidate.kernel)):
        if moments is not None:
            covariance = regularised(moments.covariance[number])
            kernel, _ = whitened(candidate.factorization, layer, kernel.astype(float), covariance)
        if (kept := candidate.factorization.kept(kernel)) is None:
            return None
        total = kept if total is None else total + kept
    return total


def _choices(
    candidate: Candidate, settings: RankSettings, *, in_proportion: bool
) -> list[tuple[int, ...]]:
    """Admissible ranks: of every combination, or all in proportion to the full ones."""
    layer, method = one_group(candidate.layer), candidate.factorization
    multiple = lcm(settings.multiple_of, method.rank_multiple)

    def admissible(full: int) -> list[int]:
        lowest = -(-min(settings.minimum, full) // multiple) * multiple
        ranks = list(range(max(lowest, multiple), full + 1, multiple)) or [full]
        if len(ranks) <= _RANKS:
            return ranks
        # Small ranks differ by more than large ones do.
        thinned = np.unique(np.geomspace(1, len(ranks), _RANKS).round().astype(int) - 1)
        return [ranks[index] for index in thinned]

    of_modes = [np.array(admissible(full)) for full in candidate.full_ranks]
    if in_proportion:
        largest = max(candidate.full_ranks)
        modes = list(zip(of_modes, candidate.full_ranks, strict=True))
        combined = (
            [ranks[np.abs(ranks - share * full).argmin()] for ranks, full in modes]
            for share in of_modes[candidate.full_ranks.index(largest)] / largest
        )
    else:
        combined = product(*of_modes)
    found = (method.consistent(layer, tuple(map(int, ranks))) for ranks in combined)
    return list(dict.fromkeys(found))


def _worthwhile(choices: Sequence[tuple]) -> list[tuple]:
    """Without those that leave out no less than another one and cost no less in any way."""
    front: list[tuple] = []
    for choice in sorted(choices):
        if not any(
            all(a <= b for a, b in zip(other[1:-1], choice[1:-1], strict=True)) for other in front
        ):
            front.append(choice)
    return front
