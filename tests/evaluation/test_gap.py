"""Test the warning about validation images on which a network is suspiciously good."""

import numpy as np
import pytest

from lowrank.core.metric import Metric
from lowrank.evaluation import gap
from lowrank.tasks import get_task
from lowrank.tasks.task import Measured

ACCURACY = get_task("classification").metric
ERROR = Metric("mae", "mean error", "error", unit="px", higher_is_better=False, best=0.0)


def measured(accuracy):
    return {name: Measured({"top1": value}) for name, value in accuracy.items()}


def gap_warning(accuracy, **options):
    return gap.gap_warning(ACCURACY, measured(accuracy), **options)


def explained_gap(accuracy, **counts):
    return gap.explained_gap(ACCURACY, measured(accuracy), **counts)


def test_gap_explained_by_chance_gives_no_warning():
    # Accuracy of the shipped checkpoints.
    for accuracy in ({"validation": 93.66, "test": 93.38}, {"validation": 91.9, "test": 91.66}):
        counts = {"validation": 5000, "test": 10000}
        assert gap_warning(accuracy, **counts, validation_from="train") == ""


def test_large_gap_gives_a_warning_with_advice():
    accuracy = {"validation": 99.98, "test": 93.39}
    counts = {"validation": 5000, "test": 10000}
    warning = gap_warning(accuracy, **counts, validation_from="train")
    assert "The gap is 6.59 points" in warning
    assert "`validation: {from: test, images: 5000}`" in warning


def test_validation_accuracy_below_test_accuracy_gives_no_warning():
    accuracy = {"validation": 80.0, "test": 93.0}
    assert gap_warning(accuracy, validation=5000, test=10000, validation_from="train") == ""


def test_explained_gap_is_three_standard_errors_and_half_a_point():
    # sqrt(90 x 10 x (1/100 + 1/100)) = 4.243 points
    accuracy = {"validation": 92.0, "test": 88.0}
    assert explained_gap(accuracy, validation=100, test=100) == pytest.approx(13.228, abs=1e-3)


def test_threshold_is_rarely_exceeded_by_chance():
    generator = np.random.default_rng(0)
    accuracies = 100 * generator.binomial((500, 1000), 0.9, (20_000, 2)) / (500, 1000)
    warnings = [
        gap_warning(
            {"validation": v, "test": t}, validation=500, test=1000, validation_from="train"
        )
        for v, t in accuracies
    ]
    assert 0 < sum(map(bool, warnings)) < 0.00135 * len(warnings)


@pytest.mark.parametrize(("shift", "warns"), [(0.0, False), (-0.5, True), (0.5, False)])
def test_gap_of_an_error(shift, warns):
    generator = np.random.default_rng(0)
    scores = {
        "validation": generator.normal(2 + shift, 0.5, 400),
        "test": generator.normal(2, 0.5, 400),
    }
    by_split = {name: Measured({"mae": float(of.mean())}, of) for name, of in scores.items()}
    options = {"validation": 400, "test": 400}
    warning = gap.gap_warning(ERROR, by_split, **options, validation_from="test")
    assert bool(warning) == warns
    assert ("test error is 1.99 px" in warning) == warns
    pooled = np.std(np.concatenate(list(scores.values())))
    explained = gap.explained_gap(ERROR, by_split, **options)
    assert explained == pytest.approx(3 * pooled * np.sqrt(2 / 400))


def test_a_metric_without_scores_gives_no_warning():
    by_split = {"validation": Measured({"mae": 0.1}), "test": Measured({"mae": 9.0})}
    options = {"validation": 400, "test": 400, "validation_from": "test"}
    assert gap.gap_warning(ERROR, by_split, **options) == ""
