"""The integer program that chooses one entry for each layer under bounds on the sum of costs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from lowrank.core.layers import Layer, LayerTable, PlainLayer, narrowed
from lowrank.core.plans import Share
from lowrank.factorize import grouped_sequence
from lowrank.ranks.bounds import Bound
from lowrank.ranks.curves import Curve

# The solver may exceed a bound by slightly less than this share.
TOLERANCE = 2e-6

# Largest number of groups into which the choices for a layer that feeds another one are divided.
_MAX_GROUPS = 16


# Compared by identity, because arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class Choice:
    """An entry for one layer.

    Parameters
    ----------
    layer
        The layer.
    share
        Its ranks and the expected loss.
    sequence
        The plain layers that replace it, or the layer itself.
    costs
        Shape (bounds,): their costs.
    """

    layer: Layer
    share: Share
    sequence: tuple[PlainLayer, ...]
    costs: np.ndarray

    @property
    def removes_channels(self) -> bool:
        """True if the layer reads only some of its input channels."""
        return bool(self.share.ranks) and self.sequence[0].selects

    @property
    def removes_branch(self) -> bool:
        """True if the layer reads nothing, so that the layers before it are not needed."""
        return bool(self.share.ranks) and self.sequence[0].constant


@dataclass(frozen=True)
class _Pair:
    """A choice that removes input channels, and a choice for the layer that feeds them.

    `reader` are the indices of choices that leave the same number of channels, `feeder` those of
    choices whose last plain layers are similar. `saved` has the shape (bounds,): what both choices
    together cost less than one by one.
    """

    reader: tuple[int, ...]
    feeder: tuple[int, ...]
    saved: np.ndarray


class IntegerProgram:
    """The choices for all layers, with their costs.

    If a layer reads only some of its input channels, the layer that feeds it computes only these.
    Both choices together then cost less than one by one. Such products of two choices are made
    linear by a variable for each pair. If a layer reads nothing, the layers of its branch are not
    needed. They stay unchanged in that case, which loses nothing, and their costs are subtracted.

    Parameters
    ----------
    table
        Layers of the network; layers without a curve stay as they are.
    curves
        Curves for any number of factorizations of each layer, with the expected loss of each
        choice.
    bounds
        Entries of the target.
    """

    def __init__(
        self,
        table: LayerTable,
        curves: Sequence[tuple[Curve, np.ndarray]],
        bounds: Sequence[Bound],
    ) -> None:
        self._table, self._bounds = table, bounds
        # For the unchanged layer, the first of its factorizations is listed.
        first = {curve.layer.name: curve.factorization.name for curve, _ in reversed(curves)}
        self.layers = [layer for layer in table.layers if layer.name in first]
        self.choices = [
            Choice(layer, Share(first[layer.name], (), 0.0), (layer,), self._dense_costs(layer))
            for layer in self.layers
        ]
        for curve, losses in curves:
            for ranks, costs, loss in zip(curve.ranks, curve.costs, losses, strict=True):
                share = Share(curve.factorization.name, ranks, float(loss))
                sequence = grouped_sequence(curve.factorization, curve.layer, ranks)
                choice = Choice(curve.layer, share, sequence, np.array(costs, float))
                self.choices.append(self._without_branch(choice))

    def least_loss(self) -> list[Choice] | None:
        """Return a choice for each layer with the smallest total loss; None if no choice fits."""
        limits = (1 - TOLERANCE) * np.array([bound.limit(self._table) for bound in self._bounds])
        if not self.choices and (self.fixed > limits).any():
            return None
        within = LinearConstraint(self._costs / limits[:, None], -np.inf, 1 - self.fixed / limits)
        # Scaled far above the solver's tolerance, which is absolute.
        losses = np.array([choice.share.loss for choice in self.choices]) * 1e4
        return self._solved(losses, [within])

    def least_cost(self, column: int) -> tuple[list[Choice], float]:
        """Return the cheapest choices for one bound, and their cost with that of all the rest."""
        taken = self._solved(self._costs[column], [])
        if taken is None:
            raise RuntimeError("the solver found no choice, although each layer has one")
        return taken, float(self.fixed[column] + self._together(taken)[column])

    @property
    def fixed(self) -> np.ndarray:
        """Shape (bounds,): cost of everything that has no choice."""
        names = {layer.name for layer in self.layers}
        others = [layer for layer in self._table.layers if layer.name not in names]
        return np.array(
            [bound.rest + sum(map(bound.of_dense, others)) for bound in self._bounds], float
        )

    def _without_branch(self, choice: Choice) -> Choice:
        """Return a choice whose costs are less by those of the layers that it makes needless."""
        if not choice.removes_branch:
            return choice
        saved = sum(map(self._dense_costs, self._table.branch(choice.layer)), 0.0)
        return replace(choice, costs=choice.costs - saved)

    def _dense_costs(self, layer: Layer) -> np.ndarray:
        return np.array([bound.of_dense(layer) for bound in self._bounds], float)

    @cached_property
    def _by_layer(self) -> dict[str, list[int]]:
        """Indices of the choices for each layer."""
        indices: dict[str, list[int]] = {layer.name: [] for layer in self.layers}
        for index, choice in enumerate(self.choices):
            indices[choice.layer.name].append(index)
        return indices

    @cached_property
    def _pairs(self) -> list[_Pair]:
        readers: dict[tuple[str, int], list[int]] = {}
        for index, choice in enumerate(self.choices):
            if choice.removes_channels:
                key = (choice.layer.name, choice.sequence[0].out_channels)
                readers.setdefault(key, []).append(index)
        pairs = []
        for (name, channels), indices in readers.items():
            reader = tuple(indices)
            *depthwise, feeder = self._table.feeders(self._table[name])
            saved = sum((self._saved(layer, (layer,), channels) for layer in depthwise), 0.0)
            groups = self._by_last_layer(feeder)
            if not groups:
                saved = saved + self._saved(feeder, (feeder,), channels)
                pairs.append(_Pair(reader, (), saved))
            for group in groups:
                both = [self._saved(feeder, sequence, channels) for sequence in group]
                feeding = tuple(index for of_sequence in group.values() for index in of_sequence)
                pairs.append(_Pair(reader, feeding, saved + np.min(both, axis=0)))
        return pairs

    def _by_last_layer(self, layer: Layer) -> list[dict[tuple[PlainLayer, ...], list[int]]]:
        """Return the choices for a layer in few groups, with similar last plain layers.

        Each group has the indices of the choices by a sequence with the last plain layer that they
        share. The saving of a group is its smallest, so the bounds are met in any case.
        """
        by_last: dict[PlainLayer, list[int]] = {}
        for index in self._by_layer.get(layer.name, ()):
            by_last.setdefault(self.choices[index].sequence[-1], []).append(index)
        ordered = sorted(
            by_last.values(), key=lambda indices: self.choices[indices[0]].sequence[-1].parameters
        )
        parts = np.array_split(np.arange(len(ordered)), min(len(ordered), _MAX_GROUPS) or 1)
        return [
            {self.choices[ordered[number][0]].sequence: ordered[number] for number in part}
            for part in parts
            if len(part)
        ]

    def _saved(self, layer: Layer, sequence: Sequence[PlainLayer], channels: int) -> np.ndarray:
        """Return what a layer's plain layers cost less with fewer output channels."""
        shorter = narrowed(sequence, channels)
        return np.array(
            [
                bound.of_sequence(sequence, layer) - bound.of_sequence(shorter, layer)
                for bound in self._bounds
            ],
            float,
        )

    @cached_property
    def _costs(self) -> np.ndarray:
        """Shape (bounds, choices + pairs): cost of each variable."""
        columns = [choice.costs for choice in self.choices]
        columns += [-pair.saved for pair in self._pairs]
        return np.array(columns, float).reshape(-1, len(self._bounds)).T

    def _together(self, taken: Sequence[Choice]) -> np.ndarray:
        indices = {self.choices.index(choice) for choice in taken}
        total = sum((choice.costs for choice in taken), np.zeros(len(self._bounds)))
        for pair in self._pairs:
            if indices & {*pair.reader} and (not pair.feeder or indices & {*pair.feeder}):
                total = total - pair.saved
        return total

    def _solved(
        self, objective: np.ndarray, constraints: Sequence[LinearConstraint]
    ) -> list[Choice] | None:
        """Return the choices with the smallest objective, (choices,) or (choices + pairs,)."""
        if not self.choices:
            return []
        count, pairs = len(self.choices), self._pairs
        variables = count + len(pairs)
        objective = np.concatenate([objective, np.zeros(variables - len(objective))])
        numbers = {layer.name: number for number, layer in enumerate(self.layers)}
        rows = [numbers[choice.layer.name] for choice in self.choices]
        one_each = sparse.csr_array(
            (np.ones(count), (rows, np.arange(count))), shape=(len(self.layers), variables)
        )
        with _silent():
            solution = milp(
                c=objective,
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    *self._consistent(variables),
                    *constraints,
                ],
                integrality=np.concatenate([np.ones(count), np.zeros(len(pairs))]),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 1e-4},
            )
        if solution.x is None:
            return None
        return [self.choices[index] for index in np.flatnonzero(solution.x[:count] > 0.5)]

    def _consistent(self, variables: int) -> list[LinearConstraint]:
        """Return the constraints between the choices for different layers.

        A pair is 1 exactly if both of its choices are taken. The layers of a removed branch stay
        unchanged.
        """
        constraints = self._unchanged_branches(variables)
        if not self._pairs:
            return constraints
        count = len(self.choices)
        by_reader: dict[tuple[int, ...], list[int]] = {}
        by_feeder: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for number, pair in enumerate(self._pairs, count):
            by_reader.setdefault(pair.reader, []).append(number)
            if pair.feeder:
                reader = self.choices[pair.reader[0]].layer.name
                by_feeder.setdefault((reader, pair.feeder), []).append(number)
        readers = sparse.lil_array((len(by_reader), variables))
        for row, (indices, numbers) in enumerate(by_reader.items()):
            readers[row, [*indices, *numbers]] = [-1.0] * len(indices) + [1.0] * len(numbers)
        feeders = sparse.lil_array((max(len(by_feeder), 1), variables))
        for row, ((_, indices), numbers) in enumerate(by_feeder.items()):
            columns = [*indices, *numbers]
            feeders[row, columns] = [-1.0] * len(indices) + [1.0] * len(numbers)
        return [
            *constraints,
            LinearConstraint(readers.tocsr(), 0, 0),
            LinearConstraint(feeders.tocsr(), -np.inf, 0),
        ]

    def _unchanged_branches(self, variables: int) -> list[LinearConstraint]:
        """Return the constraint that the layers of a removed branch stay unchanged."""
        unchanged = {
            choice.layer.name: index
            for index, choice in enumerate(self.choices)
            if not choice.share.ranks
        }
        pairs = [
            (index, unchanged[layer.name])
            for index, choice in enumerate(self.choices)
            if choice.removes_branch
            for layer in self._table.branch(choice.layer)
            if layer.name in unchanged
        ]
        if not pairs:
            return []
        rows = sparse.lil_array((len(pairs), variables))
        for row, (removed, other) in enumerate(pairs):
            rows[row, [removed, other]] = [1.0, -1.0]
        return [LinearConstraint(rows.tocsr(), -np.inf, 0)]


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what the solver prints: some versions of HiGHS name one of their functions."""
    try:
        stdout = os.dup(1)
    except OSError:  # A program without a standard output.
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
