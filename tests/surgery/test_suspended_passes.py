"""Test forward passes that stop at one layer after another."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.errors import UserError
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import shifted_moments
from lowrank.surgery.suspended_passes import SuspendedPasses


class Branched(nn.Module):
    """Network whose layers are called in another order than they are defined, one of them twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.side = nn.Conv2d(4, 4, 1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        stem = self.relu(self.stem(images))
        second = self.twice(self.relu(self.twice(stem)))
        second += self.side(stem)
        return self.head(self.relu(second).mean((2, 3)))


ORDER = ["stem", "twice", "side", "head"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Branched()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 6, 6, generator=generator) for count in (3, 40, 1)]


def layers_of(network):
    return find_layers(network, (3, 6, 6), "net").layers


def weakened(layer):
    """Return another layer in the place of `layer`."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight *= 0.9
    return nn.Sequential(layer)


def assert_same(actual, expected):
    for arrays, expected_arrays in zip(actual, expected, strict=True):
        for name, array in vars(expected_arrays).items():
            np.testing.assert_allclose(vars(arrays)[name], array, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_passes_from_the_start(network, batches):
    layers = {layer.name: layer for layer in layers_of(network)}
    # The networks that pass from the start, and those that are suspended.
    untouched, following = copy.deepcopy(network), copy.deepcopy(network)
    changed, names = copy.deepcopy(network), []
    with SuspendedPasses(network, changed, layers.values(), batches) as passes:
        for name in passes.order:
            expected = shifted_moments(untouched, following, layers[name], batches)
            assert_same(passes.shifted_moments(name), expected)
            for module in (changed, following):
                setattr(module, name, weakened(getattr(untouched, name)))
            names.append(name)
    assert names == ORDER


def test_networks_are_as_before(network, batches):
    changed, threads = copy.deepcopy(network), threading.active_count()
    expected = copy.deepcopy(network).eval()(batches[0])
    with SuspendedPasses(network, changed, layers_of(network), batches) as passes:
        passes.shifted_moments("stem")
        assert threading.active_count() > threads
    assert threading.active_count() == threads
    for module in (network, changed):
        assert module.training
        assert not any("forward" in vars(part) for part in module.modules())
        assert torch.equal(module.eval()(batches[0]), expected)


def test_few_images_pass_the_layers_with_large_maps():
    """The map of the second layer is 16 times larger than those of the first and the last."""
    network = nn.Sequential(
        nn.Conv2d(3, 1, 1), nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 1),
        nn.AvgPool2d(4), nn.Conv2d(16, 4, 1),
    )  # fmt: skip
    images, bytes_of_image = [torch.randn(40, 3, 32, 32)], 2 * 16 * 32 * 32 * 4
    layers = find_layers(network, (3, 32, 32), "net").layers
    images_by_layer = {}
    for name, limit in {"small": 8 * bytes_of_image, "large": 10**9}.items():
        with SuspendedPasses(network, copy.deepcopy(network), layers, images, limit) as passes:
            images_by_layer[name] = [
                passes.shifted_moments(layer)[0].samples // 64 for layer in passes.order
            ]
    assert images_by_layer == {"small": [8, 8, 8, 40], "large": [40, 40, 40, 40]}


def test_layer_that_is_not_called(network, batches):
    network.forward = lambda images: network.stem(images)
    layers = layers_of(Branched())
    with SuspendedPasses(network, copy.deepcopy(network), layers, batches) as passes:
        assert passes.order[0] == "stem"
        passes.shifted_moments("stem")
        with pytest.raises(UserError, match="no image reached layer 'side'"):
            passes.shifted_moments("side")


class Broken(Branched):
    """Network that fails behind its second layer for batches of more than 3 images."""

    def forward(self, images):
        outputs = self.twice(self.relu(self.stem(images)))
        if len(images) > 3:
            raise RuntimeError("too many images")
        return self.head(outputs.mean((2, 3)))


def test_error_of_the_network(batches):
    network, threads = Broken(), threading.active_count()
    with pytest.raises(RuntimeError, match="too many images"):
        pass_all_layers(network, batches)
    assert threading.active_count() == threads


def pass_all_layers(network, batches):
    with SuspendedPasses(network, copy.deepcopy(network), layers_of(network), batches) as passes:
        for name in passes.order:
            passes.shifted_moments(name)


def test_no_layers(network, batches):
    with SuspendedPasses(network, copy.deepcopy(network), [], batches) as passes:
        assert passes.order == []


def test_no_images(network):
    with pytest.raises(UserError, match="there are none"):
        pass_all_layers(network, [])
    assert network.training
