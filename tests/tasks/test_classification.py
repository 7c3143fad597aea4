"""Test the task of classification, and its registry."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lowrank.errors import UserError
from lowrank.tasks import DEFAULT_TASK, TASKS, get_task, metrics_of
from lowrank.testing import check_task

TASK = get_task("classification")


@pytest.mark.parametrize("name", TASKS.usable())
def test_every_task_keeps_its_contract(name):
    check_task(get_task(name))


def test_top5_for_more_than_ten_classes():
    labels = torch.tensor([11, 7, 0])
    outputs = torch.arange(12.0).expand(3, -1)
    assert TASK.scores(outputs, labels).tolist() == [True, False, False]
    assert TASK.more_scores(outputs, labels)["top5"].tolist() == [True, True, False]
    assert TASK.more_scores(outputs[:, :10], labels) == {}


def test_the_divergence_is_that_of_the_class_probabilities():
    first, second = torch.randn(2, 8, 5, dtype=torch.float64)
    probabilities, changed = second.softmax(1), first.softmax(1)
    expected = (probabilities * (probabilities / changed).log()).sum(1).mean()
    assert float(TASK.divergence(first, second)) == pytest.approx(float(expected))


def test_a_useless_network_predicts_the_most_frequent_class():
    assert TASK.useless_value(torch.tensor([3, 1, 3, 3, 0])) == 60.0


def test_networks_of_another_number_of_classes_are_refused():
    with pytest.raises(UserError, match=r"photos has 9 classes, but the network net has 10\."):
        TASK.require_match(10, 9, network="net", dataset="photos")


def test_scores_measure_a_difference_with_its_error():
    outputs = torch.eye(4)[torch.tensor([0, 1, 2, 3])]
    batches = [(torch.arange(4), torch.tensor([0, 1, 2, 0]))]
    before = TASK.measure(lambda rows: outputs[rows], batches)
    after = TASK.measure(lambda rows: outputs[rows].roll(1, 0), batches)
    assert before.values == {"top1": 75.0}
    drop, standard_error = TASK.drop(before, after)
    assert drop == 75.0
    assert standard_error == pytest.approx(100 * np.sqrt(3 - 9 / 4) / 4)


def test_an_unknown_task_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown task 'clasification'.*classification"):
        get_task("clasification")


def test_models_without_a_named_task_have_the_default():
    assert metrics_of(["net"], {}) == {"net": get_task(DEFAULT_TASK).metric}


def test_the_metric_is_read_without_numpy_and_pytorch():
    script = (
        "import sys; from lowrank.tasks import get_task; get_task('classification').metric.label;"
        "print([name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
