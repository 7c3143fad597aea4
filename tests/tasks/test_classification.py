import numpy as np
import pytest
import torch
from torch import nn

from lowrank.data.datasets import Dataset, Split
from lowrank.data.preprocessing import to_input
from lowrank.errors import UserError
from lowrank.tasks.classification import accuracy_percent, mean_loss, top1_percent, topk_percent
from lowrank.tasks.memory_format import memory_format_of
from lowrank.zoo import NetworkSpec

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
    assert sum(network.sizes) == 1 + count  # the first image is a trial


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


class Flattens(nn.Sequential):
    """By a view, which maps that are stored with their channels last do not allow."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 10))

    def forward(self, images):
        convolution, dropout, linear = self
        return linear(dropout(convolution(images).view(len(images), -1)))


def test_network_that_flattens_by_a_view():
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
    """Gives these logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def split_with(labels, outputs=None):
    labels = np.array(labels)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return Split(images, labels, np.arange(len(labels)), outputs)


def test_top5_where_there_are_over_ten_classes():
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


def test_a_subset_of_the_outputs_stands_for_the_classes():
    # The best of all outputs, 2, stands for no class; of the classes the best is 1, by output 5.
    network = Constant([0.0, 1.0, 9.0, 2.0, 3.0, 4.0, *[0.0] * 6])
    split = split_with([1, 1, 0, 2], outputs=(3, 5, 0))
    assert topk_percent(network, split, SPEC) == {"top1": 50.0}
    others = np.logaddexp.reduce([2.0, 4.0, 0.0])
    assert mean_loss(network, split, SPEC) == pytest.approx(others - (4 + 4 + 2 + 0) / 4, abs=1e-5)


def test_mean_loss_is_that_of_the_whole_split():
    network = ReadsTheLabel().train()
    loss = mean_loss(network, split_of(260, 13), SPEC)
    right, wrong = (np.log(9 + np.e) - each for each in (1, 0))
    assert loss == pytest.approx((247 * right + 13 * wrong) / 260, abs=1e-5)
    assert network.training


@pytest.mark.parametrize(
    ("classes", "changes", "outputs", "reduced_to", "reason"),
    [
        (9, {}, None, None, r"photos has 9 classes, the network any tells 10 apart.*\.outputs"),
        (3, {}, (0, 4, 10), None, r"dataset\.photos\.outputs: names output 10, .* are 0 to 9"),
        (10, {"input_shape": (4, 2, 2)}, None, None, "any takes 4 channels"),
        (10, {"resize": 48}, None, 40, r"photos\.store_pixels: .* of 40 pixels .* takes 48"),
        (10, {"input_shape": (1, 60, 48)}, None, 40, r"40 pixels .* takes 48.*at least 48"),
    ],
)
def test_network_that_does_not_match_the_dataset(classes, changes, outputs, reduced_to, reason):
    split = split_with([0, 1, 2], outputs)
    data = Dataset("photos", ("",) * classes, split, split, split, reduced_to)
    spec = NetworkSpec(**({"name": "any", "input_shape": (1, 2, 2), "num_classes": 10} | changes))
    with pytest.raises(UserError, match=reason):
        accuracy_percent(Constant(np.zeros(10)), data, spec)


def test_an_error_in_the_network_restores_its_mode():
    class Fails(ReadsTheLabel):
        def forward(self, images):
            raise RuntimeError("no")

    network = Fails().train()
    with pytest.raises(RuntimeError, match="no"):
        top1_percent(network, split_of(3, 0), SPEC)
    assert network.training


def test_a_long_evaluation_reports_its_progress(progress_lines):
    lines = progress_lines(
        lambda: topk_percent(ReadsTheLabel(), split_of(1000, 0), SPEC),
        tick=6.0,
    )
    assert [line.split(" images")[0] for line in lines] == ["250/1000", "500/1000", "750/1000"]
