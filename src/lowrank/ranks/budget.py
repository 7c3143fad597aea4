"""Ranks from a target: one choice for all layers that loses least at the cost asked for.

For each layer and factorization there is a curve (`lowrank.ranks.curves`): what the network is
expected to lose by each choice of ranks, against what it costs. The loss is measured for a few
choices, with that layer alone decomposed, and follows the error of the decomposition between them.
One choice for each layer under a bound on their sum is a multiple-choice knapsack, which an integer
program solves exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from lowrank.config.ranks import RankSettings
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Share
from lowrank.core.progress import Progress
from lowrank.errors import UserError
from lowrank.factorize import Decomposition, Moments, decompose
from lowrank.ranks.bounds import Bound
from lowrank.ranks.curves import Curve, curve_of
from lowrank.ranks.rule import Candidate

# At most so many choices for all layers are tried; one that loses no more than what was expected
# and this share of it is the last.
_CHOICES = 6
_SURPRISE = 0.1

# By so much the solver may overstep a bound, and a bit more.
_TOLERANCE = 2e-6


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


# By layer and factorization, and by ranks: what the network loses, in nats.
Losses = dict[tuple[str, str], dict[tuple[int, ...], float]]


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


def for_target(
    table: LayerTable,
    trials: Sequence[Callable[[], Trial]],
    settings: RankSettings,
    bounds: Sequence[Bound],
    measured: Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]],
    *,
    losses: Losses | None = None,
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
        Which ranks are admissible.
    bounds
        The entries of the target.
    measured
        What the network loses, in nats, by each of several replacements of one layer. It may
        iterate over them before it returns, or as it goes.
    losses
        What is known of that already, from another target; what is found is added.
    say
        Is told what was measured.

    Returns
    -------
    dict
        What each layer gets, by its name; layers that no ranks make cheaper are left out. Raises
        UserError as `meet_target` does.
    """
    losses = {} if losses is None else losses
    curves: dict[tuple[str, str], Curve] = {}
    readers: dict[tuple[str, str], Callable[[], Trial]] = {}

    def first_ones() -> Iterator[tuple[Trial, Curve, Sequence[tuple[int, ...]]]]:
        progress = Progress(len(trials), "layers decomposed at several ranks")
        for read in trials:
            trial = read()
            if curve := curve_of(trial.candidate, settings, bounds, trial.moments):
                curves[curve.key], readers[curve.key] = curve, read
                known = losses.setdefault(curve.key, {})
                yield trial, curve, curve.trials(bounds[0], bounds[0].share_of_layers(table), known)
            progress.advance()

    def try_alone(those: Iterable[tuple[Trial, Curve, Sequence[tuple[int, ...]]]]) -> None:
        tried: list[tuple[Curve, tuple[int, ...]]] = []

        def replacements() -> Iterator[tuple[str, Decomposition]]:
            for trial, curve, choices in those:
                for ranks in choices:
                    tried.append((curve, ranks))
                    yield trial.at(ranks)

        for loss, (curve, ranks) in zip(measured(replacements()), tried, strict=True):
            losses[curve.key][ranks] = loss
            say(
                f"{curve.layer.name} alone by {curve.factorization.name} at "
                f"{', '.join(map(str, ranks))}: loses {loss:.2g} nats"
            )

    try_alone(first_ones())
    chosen: list[dict[str, Share]] = []
    for _ in range(_CHOICES):
        expected = [(curve, curve.losses(losses[key])) for key, curve in curves.items()]
        choice = meet_target(table, expected, bounds)
        factored = {
            (name, share.factorization): share for name, share in choice.items() if share.ranks
        }
        try_alone(
            (readers[key](), curves[key], [share.ranks])
            for key, share in factored.items()
            if share.ranks not in losses[key]
        )
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
    bounds: Sequence[Bound],
) -> dict[str, Share]:
    """The choice for each layer that loses least in all, at costs within the target.

    Parameters
    ----------
    table
        The network; layers without a curve stay as they are.
    curves
        Of any number of factorizations for each layer, with the loss expected of each choice.
    bounds
        The entries of the target: shares of what the whole network costs.

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
    limits = (1 - _TOLERANCE) * np.array([bound.limit(table) for bound in bounds])
    layers = list(range(len(names)))
    shares = [Share(first[name], (), 0.0) for name in names]
    costs = [[bound.of_dense(table[name]) for bound in bounds] for name in names]
    for curve, losses in curves:
        for ranks, of_choice, loss in zip(curve.ranks, curve.costs, losses, strict=True):
            layers.append(names.index(curve.layer.name))
            shares.append(Share(curve.factorization.name, ranks, float(loss)))
            costs.append(of_choice)
    costs = np.array(costs, float).reshape(len(layers), len(bounds))
    fixed = np.array(
        [
            bound.rest
            + sum(bound.of_dense(layer) for layer in table.layers if layer.name not in names)
            for bound in bounds
        ]
    )
    _check_reachable(table, names, np.array(layers), costs, bounds)
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
        both = " and ".join(f"{bound.name} {bound.share:g}" for bound in bounds)
        raise UserError(
            f"ranks.target: {both} cannot be met together, each alone can. Raise one of them."
        )
    return {names[layers[index]]: shares[index] for index in np.flatnonzero(found.x > 0.5)}


def _check_reachable(
    table: LayerTable,
    names: Sequence[str],
    layers: np.ndarray,
    costs: np.ndarray,
    bounds: Sequence[Bound],
) -> None:
    """Raise UserError for an entry of the target that the cheapest choices do not meet."""
    for column, bound in enumerate(bounds):
        least = {layer.name: bound.of_dense(layer) for layer in table.layers}
        least |= {name: costs[layers == number, column].min() for number, name in enumerate(names)}
        nearest = bound.rest + sum(least.values())
        if nearest > (1 - _TOLERANCE) * bound.limit(table):
            share = bound.share_of_network(table, nearest)
            worst = sorted(least, key=least.get, reverse=True)[:3]
            held = ", ".join(
                f"{name} ({share * least[name] / nearest:.4f}"
                f"{'' if name in names else ', stays as it is'})"
                for name in worst
            )
            raise UserError(
                f"ranks.target.{bound.name}: {bound.share:g} of the network's "
                f"{bound.of_network(table):,.5g} cannot be met; the nearest that can is "
                f"{share:.4f}. Most is held by {held}. "
                "Raise the target, lower `multiple_of` or `minimum`, or let the method take more "
                "layers."
            )
