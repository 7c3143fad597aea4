from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.data.datasets import Dataset, Split
from lowrank.data.preprocessing import to_input
from lowrank.errors import UserError
from lowrank.evaluation import network as evaluation
from lowrank.evaluation.memory_format import memory_format_of
from lowrank.tasks import get_task
from lowrank.zoo import NetworkSpec

TASK = get_task("classification")
top1_percent, mean_loss = (
    partial(function, TASK) for function in (evaluation.value_of, evaluation.mean_loss)
)
SPEC = NetworkSpec("any", (1, 2, 2), 10, mean=(0.25,), std=(0.5,))


def topk_percent(network, split, spec):
    return evaluation.measure(TASK, network, split, spec).values


def accuracy_percent(network, data, spec):
    return evaluation.values_by_split(TASK, evaluation.measure_splits(TASK, network, data, spec))


class BrightnessClassifier(nn.Module):
    """Network for images of brightness 20 x class. It is always wrong in training mode."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        brightness = (images[:, 0, 0, 0] * 0.5 + 0.25) * 255
        classes = (brightness / 20).round().long()
        if self.training:
            classes = (classes + 1) % 10
        return nn.functional.one_hot(classes, 10) * self.unit


def split_of(count, wrong):
    """Return a split of every third image, with wrong labels for the first `wrong` of them."""
    labels = np.random.default_rng(0).integers(0, 10, 3 * count)
    images = np.broadcast_to(
        (20 * labels).astype(np.uint8)[:, None, None, None], (*labels.shape, 2, 2, 1)
    )
    rows = np.arange(0, 3 * count, 3)
    labels = labels.copy()
    labels[rows[:wrong]] = (labels[rows[:wrong]] + 5) % 10
    return Split(images, labels, rows)


@pytest.mark.parametrize(("count", "wrong"), [(1, 0), (250, 3), (501, 17), (40, 40)])
def test_accuracy_is_the_share_of_correct_predictions(count, wrong):
    network = BrightnessClassifier()
    accuracy = top1_percent(network, split_of(count, wrong), SPEC)
    assert accuracy == pytest.approx(100 * (count - wrong) / count)
    assert sum(network.sizes) == 1 + count  # the first image tests the memory format


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_mode_is_used_and_the_mode_is_restored(mode):
    network = BrightnessClassifier().train(mode)
    assert top1_percent(network, split_of(30, 0), SPEC) == 100.0
    assert network.training == mode


def test_accuracy_on_validation_and_test():
    train, validation, test = (split_of(100, wrong) for wrong in (0, 10, 20))
    data = Dataset("any", ("",) * 10, train, validation, test)
    accuracy = accuracy_percent(BrightnessClassifier(), data, SPEC)
    assert accuracy == {"validation": 90.0, "test": 80.0}


class Flattens(nn.Sequential):
    """Network that flattens with a view, which fails for maps in channels-last format."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 10))

    def forward(self, images):
        convolution, dropout, linear = self
        return linear(dropout(convolution(images).view(len(images), -1)))


def test_network_that_flattens_with_a_view():
    torch.manual_seed(0)
    network, spec = Flattens(), NetworkSpec("any", (3, 8, 8), 10)
    network[1].eval()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    with torch.no_grad():
        expected = network(to_input(images, spec).contiguous()).argmax(1)
    split = Split(images, expected.numpy(), np.arange(40))
    assert top1_percent(network, split, spec) == 100.0
    assert [module.training for module in network] == [True, False, True]
    assert memory_format_of(network, spec) == torch.contiguous_format
    assert memory_format_of(nn.Conv2d(3, 4, 3), spec) == torch.channels_last


class Constant(nn.Module):
    """Network that returns the same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def split_with(labels, outputs=None):
    labels = np.array(labels)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return Split(images, labels, np.arange(len(labels)), outputs)


def test_top5_for_more_than_ten_classes():
    # Classes from the best to the worst: 11, 10, ... 0.
    network = Constant(np.arange(12.0))
    split = split_with([11, 11, 10, 9, 8, 7, 6, 0])
    assert topk_percent(network, split, SPEC) == {"top1": 25.0, "top5": 75.0}
    assert topk_percent(Constant(np.arange(10.0)), split, SPEC) == {"top1": 12.5}
    data = Dataset("any", ("",) * 12, split, split, split_with([11, 0]))
    spec = NetworkSpec("any", (1, 2, 2), 12, mean=(0.25,), std=(0.5,))
    assert accuracy_percent(network, data, spec) == {
        "validation": 25.0,
        "test": 50.0,
        "validation_top5": 75.0,
        "test_top5": 50.0,
    }


def test_subset_of_the_outputs_as_classes():
    # The largest output, 2, belongs to no class. The largest output of a class is 5, for class 1.
    network = Constant([0.0, 1.0, 9.0, 2.0, 3.0, 4.0, *[0.0] * 6])
    split = split_with([1, 1, 0, 2], outputs=(3, 5, 0))
    assert topk_percent(network, split, SPEC) == {"top1": 50.0}
    others = np.logaddexp.reduce([2.0, 4.0, 0.0])
    assert mean_loss(network, split, SPEC) == pytest.approx(others - (4 + 4 + 2 + 0) / 4, abs=1e-5)


def test_mean_loss_is_the_mean_over_the_split():
    network = BrightnessClassifier().train()
    loss = mean_loss(network, split_of(260, 13), SPEC)
    loss_if_right, loss_if_wrong = (np.log(9 + np.e) - logit for logit in (1, 0))
    assert loss == pytest.approx((247 * loss_if_right + 13 * loss_if_wrong) / 260, abs=1e-5)
    assert network.training


@pytest.mark.parametrize(
    ("classes", "changes", "outputs", "reduced_to", "reason"),
    [
        (9, {}, None, None, r"photos has 9 classes, but the network any has 10\..*\.outputs"),
        (3, {}, (0, 4, 10), None, r"dataset\.photos\.outputs: has output 10, .* outputs 0 to 9"),
        (10, {"input_shape": (4, 2, 2)}, None, None, "any needs 4 channels"),
        (10, {"resize": 48}, None, 40, r"photos\.store_pixels: .* of 40 pixels, .* needs 48"),
        (10, {"input_shape": (1, 60, 48)}, None, 40, r"40 pixels, .* needs 48.*at least 48"),
    ],
)
def test_network_that_does_not_match_the_dataset(classes, changes, outputs, reduced_to, reason):
    split = split_with([0, 1, 2], outputs)
    data = Dataset("photos", ("",) * classes, split, split, split, reduced_to)
    spec = NetworkSpec(**({"name": "any", "input_shape": (1, 2, 2), "num_classes": 10} | changes))
    with pytest.raises(UserError, match=reason):
        accuracy_percent(Constant(np.zeros(10)), data, spec)


def test_mode_is_restored_after_an_error():
    class Fails(BrightnessClassifier):
        def forward(self, images):
            raise RuntimeError("no")

    network = Fails().train()
    with pytest.raises(RuntimeError, match="no"):
        top1_percent(network, split_of(3, 0), SPEC)
    assert network.training


def test_long_evaluation_reports_progress(progress_lines):
    lines = progress_lines(
        lambda: topk_percent(BrightnessClassifier(), split_of(1000, 0), SPEC),
        tick=6.0,
    )
    assert [line.split(" images")[0] for line in lines] == ["250/1000", "500/1000", "750/1000"]


def test_values_by_split_as_text():
    values = {"validation": 25.0, "test": 50.0, "test_top5": 75.0}
    text = evaluation.text_by_split(TASK, values)
    assert text == "validation 25.00 %, test 50.00 %, test top5 75.00 %"


def test_images_without_labels():
    split = replace(split_with([0]), unlabelled="the folder has no sub-folders")
    for purpose, work in (("accuracy", top1_percent), ("the loss", mean_loss)):
        with pytest.raises(UserError, match=f"measuring {purpose} needs labels, .* no sub-folders"):
            work(Constant(np.zeros(10)), split, SPEC)
