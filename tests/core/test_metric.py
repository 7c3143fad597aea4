"""Test the metric of a task: direction, unit, and the difference of two networks."""

import numpy as np
import pytest

from lowrank.core.metric import Metric
from lowrank.core.plans import Expected, Plan

ACCURACY = Metric("top1", "top-1", "accuracy")
ERROR = Metric("mae", "mean error", "error", unit="px", higher_is_better=False, best=0.0, digits=3)
SCORE = Metric("score", "score", "score", unit="", best=1.0)


def test_texts_have_the_unit():
    assert [metric.text(0.5) for metric in (ACCURACY, ERROR, SCORE)] == [
        "0.50 %",
        "0.500 px",
        "0.50",
    ]
    assert [metric.label for metric in (ACCURACY, ERROR, SCORE)] == [
        "top-1, %",
        "mean error, px",
        "score",
    ]
    assert ACCURACY.difference(1.234) == "1.23 points"
    assert (ERROR.difference(1.0), SCORE.difference(1.0)) == ("1.000 px", "1.00")
    assert ERROR.axis("on the test images") == "mean error on the test images, px"


def test_names_in_documents_state_a_percentage():
    assert ACCURACY.column(ACCURACY.key) == "top1_percent"
    assert (ERROR.column(ERROR.key), SCORE.column("accuracy")) == ("mae", "accuracy")


def test_a_loss_is_positive_if_the_second_network_is_worse():
    assert ACCURACY.loss(90.0, 88.0) == 2.0
    assert ERROR.loss(1.0, 3.0) == 2.0
    assert ERROR.is_better(1.0, 3.0)
    assert not ACCURACY.is_better(90.0, 90.0)


def test_the_standard_error_is_that_of_a_paired_difference():
    """It matches the deviation over many draws of images."""
    lost, gained, images = 30, 12, 2000
    changes = np.repeat([1.0, -1.0, 0.0], [lost, gained, images - lost - gained])
    drop, standard_error = ACCURACY.drop(changes > 0, changes < 0)
    assert drop == pytest.approx(0.9)
    # McNemar 1947.
    expected = 100 * np.sqrt(lost + gained - (lost - gained) ** 2 / images) / images
    assert standard_error == pytest.approx(expected)
    generator = np.random.default_rng(0)
    drops = [100 * generator.choice(changes, images).mean() for _ in range(4000)]
    assert standard_error == pytest.approx(np.std(drops), rel=0.05)


def test_the_drop_of_an_error_is_its_increase():
    before, after = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    drop, standard_error = ERROR.drop(before, after)
    assert drop == pytest.approx(1.0)
    assert standard_error == pytest.approx(np.std([1, 0, 2]) / np.sqrt(3))


def test_equal_scores_have_no_error():
    assert ACCURACY.drop([1.0] * 100, [1.0] * 100) == (0.0, 0.0)


def test_an_expected_error_that_rises_is_a_drop():
    expected = Expected(400, 1.0, 2.0, 5.0, metric=ERROR, standard_error=0.05)
    assert expected.drop == pytest.approx(0.25)
    assert expected.exceeds(0.2)
    assert not expected.exceeds(0.3)
    assert not Expected(400, 1.0, 2.0, 5.0, metric=ERROR, standard_error=0.4).exceeds(0.2)
    assert "error 1.000 px -> 2.000 px on 400 images (chance 5.0 px)" in expected.sentence()
    assert Expected(400, 2.0, 1.0, 5.0, metric=ERROR).drop == 0.0


def test_the_metric_of_a_plan_is_written_unless_it_is_accuracy():
    expected = Expected(400, 1.0, 2.0, 5.0, metric=ERROR, standard_error=0.05)
    document = Plan((), expected=expected).to_json()
    assert Plan.from_json(document).expected == expected
    expected = Expected(10, 90.0, 80.0, 10.0, metric=ACCURACY)
    document = Plan((), expected=expected).to_json()["expected"]
    assert list(document) == ["images", "before", "after", "chance", "of_labels"]


def test_the_axis_of_reported_values_names_the_images():
    assert ACCURACY.reported_axis() == "top-1 on the test images, %"
    assert ACCURACY.reported_axis(images=240) == "top-1 on 240 test images, %"
    assert ACCURACY.reported_axis("after training") == "top-1 on the test images after training, %"
    own = Metric("value", "lines read", "lines read", is_own=True)
    assert own.reported_axis(images=240) == "lines read, %"
    assert own.reported_axis("after training") == "lines read after training, %"
