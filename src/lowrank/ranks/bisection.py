"""The cheapest network within a target of accuracy: trials that halve a range of costs.

Each trial is a network of some share of the original's cost, compressed and fine-tuned as any
other. Its share is the middle, by ratios, of what is left of the range: cheaper networks lose more,
so above a trial that loses too much, below one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from lowrank.errors import UserError


@dataclass(frozen=True)
class Found:
    """What a trial lost, in points of validation accuracy.

    Parameters
    ----------
    share
        Of the original's cost, that was asked for.
    drop
        What it lost.
    standard_error
        Of the drop, over the choice of validation images.
    """

    share: float
    drop: float
    standard_error: float

    @classmethod
    def of(cls, share: float, *, lost: int, gained: int, images: int) -> Found:
        """From how many images only the original gets right, and how many only the trial.

        Both networks see the same images, so those on which they agree say nothing of the
        difference (McNemar 1947).
        """
        variance = (lost + gained) - (lost - gained) ** 2 / images
        return cls(share, 100 * (lost - gained) / images, 100 * sqrt(max(variance, 0)) / images)

    def within(self, accuracy_drop: float, confidence: float) -> bool:
        """Whether the drop, with so many standard errors added, is at most `accuracy_drop`."""
        return self.drop + confidence * self.standard_error <= accuracy_drop

    def to_json(self) -> dict[str, Any]:
        """The document that `judge_trial` writes."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Found:
        """The inverse of `to_json`."""
        return cls(**document)


def next_share(
    between: tuple[float, float],
    trials: Sequence[Found],
    *,
    accuracy_drop: float,
    confidence: float,
) -> float:
    """The share of the next trial, after those that were made."""
    low, high = between
    for trial in trials:
        if trial.within(accuracy_drop, confidence):
            high = min(high, trial.share)
        else:
            low = max(low, trial.share)
    return sqrt(low * high)


def cheapest(
    trials: Sequence[Found],
    *,
    accuracy_drop: float,
    confidence: float,
    control: Found | None = None,
) -> int:
    """Return which trial, from 0, is the cheapest within the target.

    If none is, but the `control` is (the original in int8), the trial that loses least stands
    beside it. Otherwise UserError is raised, with the nearest.
    """
    within = [n for n, trial in enumerate(trials) if trial.within(accuracy_drop, confidence)]
    if within:
        return min(within, key=lambda number: trials[number].share)
    best = min(range(len(trials)), key=lambda number: trials[number].drop)
    if control and control.within(accuracy_drop, confidence):
        return best
    nearest = trials[best]
    without = (
        f", and neither does int8 of the original ({control.drop:.2f} +- "
        f"{control.standard_error:.2f})"
        if control
        else ""
    )
    raise UserError(
        f"ranks.target.accuracy_drop: no trial loses at most {accuracy_drop:g} points with "
        f"{confidence:g} standard errors added{without}. The nearest, at a share of "
        f"{nearest.share:.3f} of the original's cost, loses {nearest.drop:.2f} +- "
        f"{nearest.standard_error:.2f}. Raise the target or the upper end of `search.between`, or "
        "give `finetune` more steps."
    )
