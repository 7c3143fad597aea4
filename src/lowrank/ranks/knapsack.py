"""The choice of ranks for all layers that loses least within a target.

For each layer and factorization there is a curve (`lowrank.ranks.curves`): the expected loss of the
network for each choice of ranks, and the cost of the choice. The loss is measured for a few
choices, with only that layer decomposed. Between them it follows the error of the decomposition.
Choosing one entry for each layer under a bound on the sum of costs is a multiple-choice knapsack
problem, which an integer program solves exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Losses, Share
from lowrank.core.progress import Progress
from lowrank.errors import UserError
from lowrank.factorize import Decomposition, Moments, decompose
from lowrank.ranks.bounds import Bound
from lowrank.ranks.curves import Curve, curve_of
from lowrank.ranks.integer_program import TOLERANCE, IntegerProgram
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import Candidate

# Maximum number of choices for all layers that are tried. The search ends earlier if a choice loses
# at most this share more than expected.
_MAX_CHOICES = 6
_MAX_EXCESS = 0.1


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
    unit: str = "nats",
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
        Function that returns the divergence of the outputs, in `unit`, for each of several
        replacements of one layer. It may consume all replacements before it returns, or one at a
        time.
    losses
        Known losses, from another target. New losses are added.
    unit
        Unit of the losses, for messages.
    say
        Receives a message for each measurement.

    Returns
    -------
    dict
        Share of each layer, by its name. Layers that no ranks make cheaper are left out. Raises
        UserError as `meet_target` does.
    """
    alone = _LayersAlone(measured, {} if losses is None else losses, unit, say)
    alone.measure(alone.first_choices(table, trials, settings, bounds))
    chosen: list[dict[str, Share]] = []
    for _ in range(_MAX_CHOICES):
        choice = meet_target(table, alone.expected(), bounds)
        chosen.append(choice | alone.measured_shares(choice))
        if _total_loss(chosen[-1]) <= (1 + _MAX_EXCESS) * _total_loss(choice):
            break
    return min(chosen, key=_total_loss)


# A layer, its curve, and the ranks at which it is to be measured.
_Planned = tuple[Trial, Curve, Sequence[tuple[int, ...]]]


@dataclass
class _LayersAlone:
    """Losses of the network with one layer decomposed at a time.

    Parameters
    ----------
    measured, losses, unit, say
        As for `for_target`.
    curves, readers
        Curve of each layer and factorization, and the function that reads the layer.
    """

    measured: Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]]
    losses: Losses
    unit: str
    say: Callable[[str], object]
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    readers: dict[tuple[str, str], Callable[[], Trial]] = field(default_factory=dict)

    def first_choices(
        self,
        table: LayerTable,
        trials: Sequence[Callable[[], Trial]],
        settings: RankSettings,
        bounds: Sequence[Bound],
    ) -> Iterator[_Planned]:
        """Yield each layer with the ranks at which its loss is not yet known."""
        progress = Progress(len(trials), "layers decomposed at several ranks")
        for read in trials:
            trial = read()
            if curve := curve_of(trial.candidate, settings, bounds, trial.moments):
                self.curves[curve.key], self.readers[curve.key] = curve, read
                known = self.losses.setdefault(curve.key, {})
                yield trial, curve, curve.trials(bounds[0], bounds[0].share_of_layers(table), known)
            progress.advance()

    def measure(self, planned: Iterable[_Planned]) -> None:
        """Measure the loss of the network with each of these layers decomposed alone."""
        tried: list[tuple[Curve, tuple[int, ...]]] = []

        def replacements() -> Iterator[tuple[str, Decomposition]]:
            for trial, curve, choices in planned:
                for ranks in choices:
                    tried.append((curve, ranks))
                    yield trial.at(ranks)

        for loss, (curve, ranks) in zip(self.measured(replacements()), tried, strict=True):
            self.losses[curve.key][ranks] = loss
            self.say(
                f"{curve.layer.name} alone, with {curve.factorization.name} at "
                f"{', '.join(map(str, ranks))}: loss of {loss:.2g} {self.unit}".rstrip()
            )

    def expected(self) -> list[tuple[Curve, np.ndarray]]:
        """Return each curve with the losses that are expected along it, for `meet_target`."""
        return [(curve, curve.losses(self.losses[key])) for key, curve in self.curves.items()]

    def measured_shares(self, choice: Mapping[str, Share]) -> dict[str, Share]:
        """Return the decomposed layers of a choice, with their measured losses."""
        factored = {
            (name, share.factorization): share for name, share in choice.items() if share.ranks
        }
        self.measure(
            (self.readers[key](), self.curves[key], [share.ranks])
            for key, share in factored.items()
            if share.ranks not in self.losses[key]
        )
        return {
            key[0]: replace(share, loss=self.losses[key][share.ranks])
            for key, share in factored.items()
        }


def _total_loss(choice: Mapping[str, Share]) -> float:
    return sum(share.loss or 0.0 for share in choice.values())


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
    program = IntegerProgram(table, curves, bounds)
    taken = program.least_loss()
    if taken is None:
        _check_reachable(table, program, bounds)
        targets = " and ".join(f"{bound.name} {bound.share:g}" for bound in bounds)
        raise UserError(
            f"ranks.target: {targets} cannot be met together, but each of them can be met alone. "
            "Raise one of them."
        )
    return {choice.layer.name: choice.share for choice in taken}


def _check_reachable(table: LayerTable, program: IntegerProgram, bounds: Sequence[Bound]) -> None:
    """Raise UserError for an entry of the target that even the cheapest choices do not meet."""
    for column, bound in enumerate(bounds):
        taken, nearest = program.least_cost(column)
        if nearest <= (1 - TOLERANCE) * bound.limit(table):
            continue
        smallest = {layer.name: bound.of_dense(layer) for layer in table.layers}
        smallest |= {choice.layer.name: float(choice.costs[column]) for choice in taken}
        names = [choice.layer.name for choice in taken]
        share = bound.share_of_network(table, nearest)
        largest = sorted(smallest, key=lambda name: smallest[name], reverse=True)[:3]
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
