"""Ranks from a target: the choice for all layers that loses least within the target.

For each layer and factorization there is a curve (`lowrank.ranks.curves`): the expected loss of the
network for each choice of ranks, and the cost of the choice. The loss is measured for a few
choices, with only that layer decomposed. Between them it follows the error of the decomposition.
Choosing one entry for each layer under a bound on the sum of costs is a multiple-choice knapsack
problem, which an integer program solves exactly.
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

# Maximum number of choices for all layers that are tried. The search ends earlier if a choice loses
# at most this share more than expected.
_MAX_CHOICES = 6
_MAX_EXCESS = 0.1

# The solver may exceed a bound by slightly less than this share.
_TOLERANCE = 2e-6


def budget(candidate: Candidate, settings: RankSettings) -> tuple[int, ...] | None:
    """Return the ranks that `meet_target` chose before the first round, passed as `table`.

    None if the target is met best with the layer unchanged. Raises UserError without a table.
    """
    if not settings.table:
        raise UserError(
            "select: 'budget' needs losses, which are measured on images by the step select_ranks "
            "or by `lowrank.compress(..., images=...)`. Without images, use another rule."
        )
    return settings.table.get(candidate.layer.name) or None


# Loss of the network in nats, by (layer, factorization) and by ranks.
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
        Moments of the layer's inputs: the factors then approximate its outputs. None: they
        approximate its weights.
    """

    candidate: Candidate
    bias: np.ndarray | None = None
    moments: Moments | None = None

    def at(self, ranks: tuple[int, ...]) -> tuple[str, Decomposition]:
        """Return the layer's name and its decomposition at these ranks."""
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
    """Measure each layer alone, choose ranks for all layers, and measure the choice until it holds.

    If the loss of a choice was underestimated, the loss is measured and a new choice is made with
    the measured value. The best of all measured choices is returned.

    Parameters
    ----------
    table
        Layers of the network.
    trials
        Functions that read each layer, once for each factorization that it may get. Only one result
        at a time is kept in memory.
    settings
        Settings that limit the ranks.
    bounds
        Entries of the target.
    measured
        Function that returns the loss of the network, in nats, for each of several replacements of
        one layer. It may consume all replacements before it returns, or one at a time.
    losses
        Known losses, from another target. New losses are added.
    say
        Receives a message for each measurement.

    Returns
    -------
    dict
        Share of each layer, by its name. Layers that no ranks make cheaper are left out. Raises
        UserError as `meet_target` does.
    """
    losses = {} if losses is None else losses
    curves: dict[tuple[str, str], Curve] = {}
    readers: dict[tuple[str, str], Callable[[], Trial]] = {}

    def first_trials() -> Iterator[tuple[Trial, Curve, Sequence[tuple[int, ...]]]]:
        progress = Progress(len(trials), "layers decomposed at several ranks")
        for read in trials:
            trial = read()
            if curve := curve_of(trial.candidate, settings, bounds, trial.moments):
                curves[curve.key], readers[curve.key] = curve, read
                known = losses.setdefault(curve.key, {})
                yield trial, curve, curve.trials(bounds[0], bounds[0].share_of_layers(table), known)
            progress.advance()

    def measure_alone(planned: Iterable[tuple[Trial, Curve, Sequence[tuple[int, ...]]]]) -> None:
        tried: list[tuple[Curve, tuple[int, ...]]] = []

        def replacements() -> Iterator[tuple[str, Decomposition]]:
            for trial, curve, choices in planned:
                for ranks in choices:
                    tried.append((curve, ranks))
                    yield trial.at(ranks)

        for loss, (curve, ranks) in zip(measured(replacements()), tried, strict=True):
            losses[curve.key][ranks] = loss
            say(
                f"{curve.layer.name} alone, with {curve.factorization.name} at "
                f"{', '.join(map(str, ranks))}: loss of {loss:.2g} nats"
            )

    measure_alone(first_trials())
    chosen: list[dict[str, Share]] = []
    for _ in range(_MAX_CHOICES):
        expected = [(curve, curve.losses(losses[key])) for key, curve in curves.items()]
        choice = meet_target(table, expected, bounds)
        factored = {
            (name, share.factorization): share for name, share in choice.items() if share.ranks
        }
        measure_alone(
            (readers[key](), curves[key], [share.ranks])
            for key, share in factored.items()
            if share.ranks not in losses[key]
        )
        measured_shares = {
            name: replace(share, loss=losses[name, share.factorization][share.ranks])
            for (name, _), share in factored.items()
        }
        chosen.append(choice | measured_shares)
        if _total_loss(chosen[-1]) <= (1 + _MAX_EXCESS) * _total_loss(choice):
            break
    return min(chosen, key=_total_loss)


def _total_loss(choice: Mapping[str, Share]) -> float:
    return sum(share.loss for share in choice.values())


def meet_target(
    table: LayerTable,
    curves: Sequence[tuple[Curve, np.ndarray]],
    bounds: Sequence[Bound],
) -> dict[str, Share]:
    """Choose for each layer so that the total loss is smallest and the costs meet the target.

    Parameters
    ----------
    table
        Layers of the network; layers without a curve stay as they are.
    curves
        Curves for any number of factorizations of each layer, with the expected loss of each
        choice.
    bounds
        Entries of the target: shares of the original network's cost.

    Returns
    -------
    dict
        Share of each layer with a curve, by its name.

    Raises
    ------
    UserError
        If no choice meets the target. The message has the nearest possible target and the layers
        with the largest costs.
    """
    # For the unchanged layer, the first of its factorizations is listed.
    first = {curve.layer.name: curve.factorization.name for curve, _ in reversed(curves)}
    names = [layer.name for layer in table.layers if layer.name in first]
    limits = (1 - _TOLERANCE) * np.array([bound.limit(table) for bound in bounds])
    layers = list(range(len(names)))
    shares = [Share(first[name], (), 0.0) for name in names]
    costs = [[bound.of_dense(table[name]) for bound in bounds] for name in names]
    for curve, losses in curves:
        for ranks, choice_costs, loss in zip(curve.ranks, curve.costs, losses, strict=True):
            layers.append(names.index(curve.layer.name))
            shares.append(Share(curve.factorization.name, ranks, float(loss)))
            costs.append(choice_costs)
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
    solution = milp(
        # Scaled far above the solver's tolerance, which is absolute.
        c=np.array([share.loss for share in shares]) * 1e4,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.T / limits[:, None], -np.inf, 1 - fixed / limits),
        ],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    if solution.x is None:
        targets = " and ".join(f"{bound.name} {bound.share:g}" for bound in bounds)
        raise UserError(
            f"ranks.target: {targets} cannot be met together, but each of them can be met alone. "
            "Raise one of them."
        )
    return {names[layers[index]]: shares[index] for index in np.flatnonzero(solution.x > 0.5)}


def _check_reachable(
    table: LayerTable,
    names: Sequence[str],
    layers: np.ndarray,
    costs: np.ndarray,
    bounds: Sequence[Bound],
) -> None:
    """Raise UserError for an entry of the target that even the cheapest choices do not meet."""
    for column, bound in enumerate(bounds):
        smallest = {layer.name: bound.of_dense(layer) for layer in table.layers}
        smallest |= {
            name: costs[layers == number, column].min() for number, name in enumerate(names)
        }
        nearest = bound.rest + sum(smallest.values())
        if nearest > (1 - _TOLERANCE) * bound.limit(table):
            share = bound.share_of_network(table, nearest)
            largest = sorted(smallest, key=smallest.get, reverse=True)[:3]
            listed = ", ".join(
                f"{name} ({share * smallest[name] / nearest:.4f}"
                f"{'' if name in names else ', stays dense'})"
                for name in largest
            )
            raise UserError(
                f"ranks.target.{bound.name}: {bound.share:g} of the network's "
                f"{bound.of_network(table):,.5g} cannot be met; the nearest possible target is "
                f"{share:.4f}. The layers with the largest shares are {listed}. "
                "Raise the target, lower `multiple_of` or `minimum`, or let the method factor "
                "more layers."
            )
