"""Search for the cheapest network within a target of accuracy, by bisection.

Each trial compresses the network to a share of the original's cost, then fine-tunes it like any
other network. The share is the geometric mean of the remaining range. Cheaper networks lose more,
so the search continues above a trial that loses too much, and below a trial that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from lowrank.errors import UserError


@dataclass(frozen=True)
class Found:
    """The loss of a trial on the validation images, in the unit of the task's metric.

    Parameters
    ----------
    share
        Target of the trial, as a share of the original's cost.
    drop
        How much worse the trial is than the original.
    standard_error
        Standard error of the drop, over the choice of validation images.
    """

    share: float
    drop: float
    standard_error: float

    def within(self, accuracy_drop: float, confidence: float) -> bool:
        """Return whether the drop plus `confidence` standard errors is at most `accuracy_drop`."""
        return self.drop + confidence * self.standard_error <= accuracy_drop

    def to_json(self) -> dict[str, Any]:
        """Return the document that `judge_trial` writes."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Found:
        """Read the document that `to_json` returns."""
        return cls(**document)


def next_share(
    between: tuple[float, float],
    trials: Sequence[Found],
    *,
    accuracy_drop: float,
    confidence: float,
) -> float:
    """Return the share of the next trial, given the finished trials."""
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
    unit: str = "points",
    advice: str = "give `finetune` more steps",
) -> int:
    """Return the number, from 0, of the cheapest trial within the target.

    If no trial is within the target, but `control` (the original in int8) is, the trial with the
    smallest drop is returned, for comparison with the control. Otherwise UserError is raised with
    the nearest trial. `unit` is the unit of drops in that message, `advice` what may help besides
    another target or range.
    """
    within = [
        number for number, trial in enumerate(trials) if trial.within(accuracy_drop, confidence)
    ]
    if within:
        return min(within, key=lambda number: trials[number].share)
    best = min(range(len(trials)), key=lambda number: trials[number].drop)
    if control and control.within(accuracy_drop, confidence):
        return best
    nearest = trials[best]
    of_control = (
        f", and neither does the original in int8 ({control.drop:.2f} +- "
        f"{control.standard_error:.2f})"
        if control
        else ""
    )
    raise UserError(
        f"ranks.target.accuracy_drop: no trial loses at most {accuracy_drop:g} {unit} with "
        f"{confidence:g} standard errors added{of_control}. The nearest, at a share of "
        f"{nearest.share:.3f} of the original's cost, loses {nearest.drop:.2f} +- "
        f"{nearest.standard_error:.2f}. Raise the target or the upper end of `search.between`, or "
        f"{advice}."
    )
