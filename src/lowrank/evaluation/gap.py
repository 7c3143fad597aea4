"""Warn about validation images on which a network is better than chance can explain."""

import math
from collections.abc import Mapping

import numpy as np

from lowrank.core.metric import Metric
from lowrank.tasks.task import Measured

# Largest gap by which the validation images can be better than the test images without a warning: a
# number of standard errors of the difference, plus a margin in points for sets that are not equally
# difficult.
GAP_STANDARD_ERRORS = 3.0
GAP_MARGIN_POINTS = 0.5


def gap_warning(
    metric: Metric,
    measured: Mapping[str, Measured],
    *,
    validation: int,
    test: int,
    validation_from: str,
) -> str:
    """Return a warning if a network is too good on the validation images, compared with the test.

    The result is an empty string otherwise.

    Choices made on such validation images are not reliable. The limit for the gap is
    `GAP_STANDARD_ERRORS` standard errors of the difference of two means (pooled), plus
    `GAP_MARGIN_POINTS` for a metric in percent.

    Parameters
    ----------
    metric
        Main metric of the task.
    measured
        Metrics on `validation` and `test`.
    validation, test
        Number of images in each split.
    validation_from
        Source of the validation images: `train`, `test` or `folder`.
    """
    values = {name: of_split.values[metric.key] for name, of_split in measured.items()}
    gap = metric.loss(values["validation"], values["test"])
    explained = explained_gap(metric, measured, validation=validation, test=test)
    if explained is None or gap <= explained:
        return ""
    noun = metric.noun
    comparison = (
        f"validation {noun} is {metric.text(values['validation'])} on {validation} images, but "
        f"test {noun} is {metric.text(values['test'])} on {test} images. The gap is "
        f"{metric.difference(gap)}; chance and a margin explain only {metric.number(explained)}. "
    )
    if validation_from == "train":
        return comparison + (
            "The weights were probably trained on the validation images, which come from the "
            f"training split, so every {noun} drop measured on them is too small. Use other "
            "images: set `validation: {from: test, images: "
            f"{max(1, test // 2)}}}` or `validation: {{folder: path}}` for this network under "
            "`checkpoint`."
        )
    return comparison + (
        "The weights were probably trained on the validation images, or these are easier than the "
        f"test images, so a drop of the {noun} measured on them can be too small. Choose images "
        "for `validation` that are similar to the test images and were not used for training."
    )


def explained_gap(
    metric: Metric, measured: Mapping[str, Measured], *, validation: int, test: int
) -> float | None:
    """Return the gap that chance and a margin can explain; None if it is not known.

    A metric in percent has at most the variance of a binomial proportion. For other metrics, the
    variance is that of the scores.
    """
    if metric.unit == "%":
        values = [measured[name].values[metric.key] for name in ("validation", "test")]
        pooled = (validation * values[0] + test * values[1]) / (validation + test)
        variance, margin = pooled * (100.0 - pooled), GAP_MARGIN_POINTS
    else:
        scores = (measured["validation"].scores, measured["test"].scores)
        if scores[0] is None or scores[1] is None:
            return None
        variance, margin = float(np.var(np.concatenate([scores[0], scores[1]]))), 0.0
    variance *= 1 / validation + 1 / test
    return GAP_STANDARD_ERRORS * math.sqrt(max(0.0, variance)) + margin
