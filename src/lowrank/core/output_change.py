"""Compare the outputs of two networks without labels, for any number and kind of outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Outputs = Mapping[str, np.ndarray]

# Difference of the sum of an output from 1 up to which it counts as a distribution.
_SUM_TOLERANCE = 1e-3

# Smallest probability in a Kullback-Leibler divergence.
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class OutputChange:
    """Change of one output of a network, over some samples.

    Parameters
    ----------
    relative_error
        Norm of the difference, divided by the norm of the original output around its mean over the
        samples. A network that always returns that mean has 1.
    same_percent
        Share of positions with the same largest entry, in percent; None if the output is no
        distribution over classes.
    chance_percent
        The same share for a network that always gives the most frequent answer; None like
        `same_percent`.
    divergence
        Kullback-Leibler divergence in nats, the mean over positions, for a distribution; otherwise
        half of the squared relative error. Both grow with the square of small errors.
    lost_percent, lost_error
        Accuracy drop in points and its standard error, if the probabilities of the original are
        right; see `LostAccuracy`. None like `same_percent`.
    """

    relative_error: float
    same_percent: float | None
    chance_percent: float | None
    divergence: float
    lost_percent: float | None = None
    lost_error: float | None = None


class LostAccuracy:
    """The accuracy that a network loses if the probabilities of the original network are right.

    The original expects its own answer to be right with the probability that it gives to it, and
    another answer with the probability that it gives to that one. The mean of the differences is
    the expected accuracy drop. It needs no labels, and varies less than a drop by labels.
    """

    def __init__(self) -> None:
        self._count, self._total, self._squares = 0, 0.0, 0.0

    def add(self, own: np.ndarray | None = None, other: np.ndarray | None = None) -> None:
        """Add the original's probabilities of its own answers and of the other network's.

        Nothing is added without probabilities.
        """
        if own is None or other is None:
            return
        lost = own.astype(np.float64) - other
        self._count += lost.size
        self._total += float(lost.sum())
        self._squares += _squared(lost)

    @property
    def points(self) -> float | None:
        """The expected accuracy drop in percentage points; None without probabilities."""
        return 100.0 * self._total / self._count if self._count else None

    @property
    def error(self) -> float | None:
        """Its standard error in percentage points; None without probabilities."""
        if not self._count:
            return None
        variance = self._squares - self._total**2 / self._count
        return 100.0 * math.sqrt(max(variance, 0.0)) / self._count


@dataclass(frozen=True)
class _Reference:
    """One output of the original network, with what does not depend on the changed network."""

    values: np.ndarray
    total: np.ndarray
    squared: float
    axis: int | None
    answers: np.ndarray
    counts: np.ndarray
    logarithms: np.ndarray

    @classmethod
    def of(cls, output: np.ndarray) -> _Reference:
        values = output.astype(np.result_type(output.dtype, np.float32), copy=False)
        sums = values.sum(0, dtype=np.float64), _squared(values)
        axis, none = class_axis(values), np.empty(0, int)
        if axis is None:
            return cls(values, *sums, None, none, none, none)
        answers = values.argmax(axis)
        counts = np.bincount(answers.ravel(), minlength=values.shape[axis])
        return cls(values, *sums, axis, answers, counts, _logarithms(values))


class ReferenceOutputs:
    """Outputs of the original network for one batch, with which several networks are compared."""

    def __init__(self, outputs: Outputs) -> None:
        # Others are indices and counts.
        self.by_name = {
            name: _Reference.of(output)
            for name, output in outputs.items()
            if isinstance(output, np.ndarray) and output.dtype.kind == "f" and output.size
        }


class OutputSums:
    """Sums of the differences of two networks' outputs over batches.

    Parameters
    ----------
    only_divergence
        Whether only `divergence` is measured, which takes less than half of the time for thousands
        of classes.
    """

    def __init__(self, *, only_divergence: bool = False) -> None:
        self._only_divergence = only_divergence
        self._difference: dict[str, float] = {}
        self._first: dict[str, np.ndarray] = {}
        self._second: dict[str, float] = {}
        self._samples: dict[str, int] = {}
        self._same: dict[str, int] = {}
        self._nats: dict[str, float] = {}
        self._answers: dict[str, int] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._without_distribution: set[str] = set()
        self._lost: dict[str, LostAccuracy] = {}

    def add(self, outputs: Outputs, expected: ReferenceOutputs) -> None:
        """Add the outputs of the changed and of the original network for one batch."""
        for name, reference in expected.by_name.items():
            actual = outputs[name].astype(reference.values.dtype, copy=False)
            if actual.shape != reference.values.shape:
                # For example, another number of detections.
                actual = np.zeros_like(reference.values)
            self._add(name, actual, reference)

    def _add(self, name: str, actual: np.ndarray, reference: _Reference) -> None:
        if reference.axis is None:
            self._without_distribution.add(name)
            self._add_difference(name, actual, reference)
            return
        if not self._only_divergence:
            self._add_difference(name, actual, reference)
            self._counts[name] = self._counts.get(name, 0 * reference.counts) + reference.counts
            answers = actual.argmax(reference.axis)
            same = answers == reference.answers
            self._same[name] = self._same.get(name, 0) + int(same.sum())
            own, other = (
                np.take_along_axis(
                    reference.values, np.expand_dims(classes, reference.axis), reference.axis
                )
                for classes in (reference.answers, answers)
            )
            self._lost.setdefault(name, LostAccuracy()).add(own, other)
        self._answers[name] = self._answers.get(name, 0) + reference.answers.size
        # The difference of logarithms comes first, because the sum of the products is small.
        logarithms = _logarithms(actual)
        np.subtract(reference.logarithms, logarithms, out=logarithms)
        nats = np.vdot(reference.values, logarithms)
        self._nats[name] = self._nats.get(name, 0.0) + float(nats)

    def _add_difference(self, name: str, actual: np.ndarray, reference: _Reference) -> None:
        """Add what the relative error needs."""
        self._difference[name] = self._difference.get(name, 0.0) + _squared(
            actual - reference.values
        )
        self._second[name] = self._second.get(name, 0.0) + reference.squared
        total = reference.total
        before = self._first.get(name)
        # Outputs of different sizes have no mean over samples.
        fits = before is None or before.shape == total.shape
        self._first[name] = (total if before is None else before + total) if fits else 0 * total
        self._samples[name] = self._samples.get(name, 0) + len(reference.values)

    def changes(self) -> dict[str, OutputChange]:
        """Return the change of each output by its name; not with `only_divergence`."""
        return {name: self._change(name) for name in self._difference}

    def divergence(self) -> float:
        """Return the mean divergence over the outputs."""
        distributions = self._answers.keys() - self._without_distribution
        divergences = [self._mean_nats(name) for name in distributions]
        divergences += [self._squared_error(name) / 2 for name in self._without_distribution]
        return sum(divergences) / max(len(divergences), 1)

    def _change(self, name: str) -> OutputChange:
        squared = self._squared_error(name)
        if name in self._without_distribution:
            return OutputChange(squared**0.5, None, None, squared / 2)
        answers = self._answers[name]
        return OutputChange(
            squared**0.5,
            100.0 * self._same[name] / answers,
            100.0 * float(self._counts[name].max()) / answers,
            self._mean_nats(name),
            self._lost[name].points,
            self._lost[name].error,
        )

    def _squared_error(self, name: str) -> float:
        """Return the square of the relative error."""
        count = self._samples[name]
        mean = self._first[name] / count
        around_mean = self._second[name] - count * float(np.vdot(mean, mean))
        # A single sample, or an output that never changes, has no spread around its mean.
        scale = around_mean if around_mean > 1e-9 * self._second[name] else self._second[name]
        return self._difference[name] / scale if scale > 0 else float(self._difference[name] > 0)

    def _mean_nats(self, name: str) -> float:
        return max(self._nats[name] / self._answers[name], 0.0)


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    logarithms: np.ndarray = np.fmax(probabilities, SMALLEST_PROBABILITY)
    np.log(logarithms, out=logarithms)
    return logarithms


def _squared(array: np.ndarray) -> float:
    """Return the sum of squares; values that are not finite count as very large."""
    total = float(np.vdot(array, array))
    if np.isfinite(total):
        return total
    array = np.nan_to_num(array.astype(np.float64), nan=1e30, posinf=1e30, neginf=-1e30)
    return float(np.vdot(array, array))


def class_axis(output: Any) -> int | None:
    """Return the axis over which an output, an array or a tensor, is a distribution, or None.

    Entries are probabilities that sum to 1, as after a softmax: over the last axis, or over axis 1
    as in a map of classes.
    """
    if output.ndim < 2 or not math.prod(output.shape) or output.min() < 0:
        return None
    for axis in (output.ndim - 1, 1):
        if output.shape[axis] > 1 and abs(output.sum(axis) - 1).max() <= _SUM_TOLERANCE:
            return axis
    return None
