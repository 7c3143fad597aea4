"""Which layer feeds which other one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.surgery.finding import find_layers, layer_table


class Network(nn.Module):
    """Three convolutions; `between` is what happens between the first and the second."""

    def __init__(self, between, then=lambda hidden, outputs: outputs):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.other = nn.Conv2d(4, 5, 1)
        self.norm = nn.BatchNorm2d(4)
        self.between, self.then = between, then

    def forward(self, images):
        hidden = self.between(self, self.first(images))
        return self.then(self, hidden, self.second(hidden))


def feeder(between, then=lambda network, hidden, outputs: outputs):
    table = find_layers(Network(between, then).eval(), (3, 8, 8), "network")
    return table["second"].fed_by


@pytest.mark.parametrize(
    "between",
    [
        lambda network, hidden: hidden,
        lambda network, hidden: network.norm(hidden).relu_(),
        lambda network, hidden: functional.max_pool2d(functional.relu6(hidden), 2),
        lambda network, hidden: hidden * torch.sigmoid(hidden),
        lambda network, hidden: functional.hardswish(hidden) * 2 + 1,
        lambda network, hidden: functional.adaptive_avg_pool2d(functional.silu(hidden), 4),
    ],
)
def test_channels_on_their_own(between):
    assert feeder(between) == "first"


@pytest.mark.parametrize(
    "between",
    [
        lambda network, hidden: hidden.flip(1),
        lambda network, hidden: hidden.softmax(1),
        lambda network, hidden: hidden + torch.ones(4, 1, 1),
        lambda network, hidden: functional.layer_norm(hidden, hidden.shape[1:]),
        lambda network, hidden: hidden.transpose(1, 2).transpose(1, 2),
    ],
)
def test_channels_that_are_mixed_or_moved(between):
    assert feeder(between) is None


@pytest.mark.parametrize(
    "then",
    [
        lambda network, hidden, outputs: (outputs, hidden),
        lambda network, hidden, outputs: outputs + hidden.mean(1, keepdim=True),
        lambda network, hidden, outputs: outputs + network.other(hidden),
        lambda network, hidden, outputs: functional.conv2d(hidden, network.other.weight),
    ],
)
def test_channels_that_are_read_elsewhere(then):
    assert feeder(lambda network, hidden: hidden.relu(), then) is None


def test_a_sum_of_two_layers_feeds_nothing():
    def both(network, hidden):
        return hidden + functional.conv2d(hidden, torch.eye(4)[:, :, None, None])

    assert feeder(both) is None


def test_depthwise_layers_are_fed_and_feed():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 2, 1)
    )
    table = find_layers(network.eval(), (3, 8, 8), "network")
    assert [layer.fed_by for layer in table.layers] == [None, "0", "2"]
    assert [layer.name for layer in table.feeders(table["4"])] == ["2", "0"]


def test_a_flattened_map_feeds_no_linear_layer():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 6), nn.GELU(), nn.Linear(6, 2)
    )
    table = find_layers(network.eval(), (3, 8, 8), "network")
    assert [layer.fed_by for layer in table.layers] == [None, None, "2"]


def test_in_residual_blocks_only_the_inner_layers_are_fed():
    table = layer_table("resnet20")
    fed = {layer.name: layer.fed_by for layer in table.layers if layer.fed_by}
    assert fed == {f"blocks.{i}.conv2": f"blocks.{i}.conv1" for i in range(9)}
