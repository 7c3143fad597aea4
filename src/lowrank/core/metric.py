"""The metric of a task: what its numbers are called, their unit, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is, such as the top-1 accuracy.

    Parameters
    ----------
    key
        Name in documents, such as `top1`: letters and digits.
    name
        Name in tables and on axes, such as `top-1`.
    noun
        Name in sentences, such as `accuracy`.
    unit
        Unit, such as `%` or `px`. Empty for a number without a unit.
    higher_is_better
        Direction.
    best
        Value of a network without errors.
    digits
        Number of decimals in texts.
    is_own
        Whether a function of the user measures it, on images of its choice. Otherwise, reported
        values are measured on the test images of the dataset.
    """

    key: str
    name: str
    noun: str
    unit: str = "%"
    higher_is_better: bool = True
    best: float = 100.0
    digits: int = 2
    is_own: bool = False

    @property
    def scale(self) -> float:
        """Value of the metric for a score of 1: scores of a metric in percent are shares."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def label(self) -> str:
        """The name with the unit, for headings and axes."""
        return self._with_unit(self.name)

    @property
    def difference_unit(self) -> str:
        """Unit of the difference of two values: `points` for percent, else the unit."""
        return "points" if self.unit == "%" else self.unit

    def column(self, stem: str) -> str:
        """Return a name for values of this metric: `<stem>_percent`, or `<stem>` in other units."""
        return f"{stem}_percent" if self.unit == "%" else stem

    def axis(self, addition: str) -> str:
        """Return the label of an axis with an addition, such as `top-1 on the test images, %`."""
        return self._with_unit(f"{self.name} {addition}")

    def reported_axis(self, addition: str = "", images: int | None = None) -> str:
        """Return the label of reported values, such as `top-1 on the test images, %`.

        `images` is the number of test images, if it is known.
        """
        on = "" if self.is_own else f"on {'the' if images is None else images} test images"
        parts = [part for part in (on, addition) if part]
        return self.axis(" ".join(parts)) if parts else self.label

    def value(self, total: float, images: int) -> float:
        """Return the value of the metric, given the sum of the scores of some images."""
        return self.scale * total / images

    def text(self, value: float, digits: int | None = None) -> str:
        """Return a value with its unit."""
        number = self.number(value, digits)
        return f"{number} {self.unit}" if self.unit else number

    def number(self, value: float, digits: int | None = None) -> str:
        """Return a value without its unit."""
        return f"{value:.{self.digits if digits is None else digits}f}"

    def difference(self, value: float) -> str:
        """Return a difference of two values with its unit."""
        number = f"{value:.{self.digits}f}"
        return f"{number} {self.difference_unit}" if self.difference_unit else number

    def loss(self, before: float, after: float) -> float:
        """Return how much worse `after` is than `before`; negative if it is better."""
        return before - after if self.higher_is_better else after - before

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another one."""
        return self.loss(value, other) > 0

    def _with_unit(self, name: str) -> str:
        return f"{name}, {self.unit}" if self.unit else name

    def drop(self, before: Iterable[float], after: Iterable[float]) -> tuple[float, float]:
        """Return the loss of one network against another, and its standard error.

        Both networks see the same images, so images on which their scores are equal say nothing
        about the difference. For scores of 0 and 1, this is the standard error of McNemar (1947).

        Parameters
        ----------
        before, after
            Score of each image for the two networks, in the same order.
        """
        losses = [self.loss(*map(float, pair)) for pair in zip(before, after, strict=True)]
        images, total = len(losses), math.fsum(losses)
        variance = math.fsum(loss * loss for loss in losses) - total**2 / images
        error = self.scale * math.sqrt(max(variance, 0.0)) / images
        return self.value(total, images), error


# The agreement of two networks, which needs no labels: the share of images with the same answer.
AGREEMENT = Metric("agreement", "agreement", "agreement with the original")

# The error of the outputs around their mean. A network that always returns the mean has 100 %.
OUTPUT_ERROR = Metric(
    "error", "output error", "error of the outputs", higher_is_better=False, best=0.0
)
