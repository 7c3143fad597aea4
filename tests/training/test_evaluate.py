import numpy as np
import pytest
import torch
from torch import nn

from lowrank.networks import NetworkSpec
from lowrank.training.datasets import Dataset, Split
from lowrank.training.evaluate import accuracy_percent, top1_percent

SPEC = NetworkSpec("any", (1, 2, 2), 10, mean=(0.25,), std=(0.5,))


class ReadsTheLabel(nn.Module):
    """Knows the class of an image of brightness 20 x class; in training mode it is always wrong."""

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
    """Rows of every third image, `wrong` of them labelled otherwise."""
    labels = np.random.default_rng(0).integers(0, 10, 3 * count)
    images = np.broadcast_to(
        (20 * labels).astype(np.uint8)[:, None, None, None], (*labels.shape, 2, 2, 1)
    )
    rows = np.arange(0, 3 * count, 3)
    labels = labels.copy()
    labels[rows[:wrong]] = (labels[rows[:wrong]] + 5) % 10
    return Split(images, labels, rows)


@pytest.mark.parametrize(("count", "wrong"), [(1, 0), (250, 3), (501, 17), (40, 40)])
def test_share_of_images_whose_class_is_found(count, wrong):
    network = ReadsTheLabel()
    found = top1_percent(network, split_of(count, wrong), SPEC)
    assert found == pytest.approx(100 * (count - wrong) / count)
    assert sum(network.sizes) == count


@pytest.mark.parametrize("mode", [True, False])
def test_measures_in_evaluation_mode_and_restores_the_mode(mode):
    network = ReadsTheLabel().train(mode)
    assert top1_percent(network, split_of(30, 0), SPEC) == 100.0
    assert network.training == mode


def test_validation_and_test_apart():
    train, validation, test = (split_of(100, wrong) for wrong in (0, 10, 20))
    data = Dataset("any", ("",) * 10, train, validation, test)
    found = accuracy_percent(ReadsTheLabel(), data, SPEC)
    assert found == {"validation": 90.0, "test": 80.0}
