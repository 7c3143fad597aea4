"""The moments of layers' inputs on real images."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.errors import UserError
from lowrank.surgery import input_moments as module
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments, shifted_moments


def images(count=6, channels=4, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, side, side, generator=generator) + 0.5


def by_definition(samples):
    """Mean and covariance of (g, count, n)."""
    samples = samples.double()
    centred = samples - samples.mean(1, keepdim=True)
    return samples.mean(1), centred.mT @ centred / samples.shape[1]


def moments_of(network, *batches, shape=(4, 8, 8)):
    table = find_layers(network, shape, "net")
    return input_moments(network, table.layers, batches)


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"padding": 1},
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
        {"groups": 2, "padding": 1},
    ],
)
def test_patches_are_those_that_the_window_sees(geometry):
    layer = nn.Conv2d(4, 6, 3, **geometry)
    found = moments_of(nn.Sequential(layer), images(), images(seed=1))["0"]
    every = torch.cat([images(), images(seed=1)])
    patches = functional.unfold(every, 3, layer.dilation, layer.padding, layer.stride)
    by_group = patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    mean, covariance = by_definition(by_group)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-5)


def test_patches_and_kernels_have_one_order():
    """So the variance of the layer's output follows from the kernel and the covariance."""
    layer = nn.Conv2d(4, 6, (3, 2), groups=2, bias=False)
    found = moments_of(nn.Sequential(layer), images())["0"]
    kernel = layer.weight.detach().double().reshape(2, 3, -1).numpy()
    squared = np.einsum("gtn,gnm,gtm->gt", kernel, found.covariance, kernel).ravel()
    outputs = layer(images()).detach().transpose(0, 1).flatten(1).var(1, correction=0)
    np.testing.assert_allclose(squared, outputs, rtol=1e-4)


def test_the_map_of_a_linear_layer_is_its_patch():
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 6 * 6, 5, bias=False))
    found = moments_of(network, images())["2"]
    assert found.covariance.shape == (1, 108, 108)
    matrix = network[2].weight.detach().numpy()
    squared = np.einsum("tn,nm,tm->t", matrix, found.covariance[0], matrix)
    np.testing.assert_allclose(squared, network(images()).detach().var(0, correction=0), rtol=1e-4)


def test_tokens_are_samples():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, images):
            return self.linear(input=images.flatten(2).mT).mean(1)

    found = moments_of(Tokens(), images())["linear"]
    mean, covariance = by_definition(images().flatten(2).mT.reshape(1, -1, 4))
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-5)


def test_large_patches_leave_the_covariance_of_the_channels(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PATCH", 35)
    layer = nn.Conv2d(4, 6, 3)
    found = moments_of(nn.Sequential(layer), images())["0"]
    patches = functional.unfold(images(), 3).unflatten(1, (4, 9))  # (N, S, D^2, places)
    mean, covariance = by_definition(patches.permute(0, 2, 3, 1).reshape(1, -1, 4))
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_places_of_a_large_map_are_spread_over_it(stride):
    layer = nn.Conv2d(1, 1, 3, padding=1, stride=stride)
    # The brightness says how far down and to the right a place is.
    ramp = torch.linspace(-1, 1, 64)
    image = (ramp[:, None] + ramp)[None, None]
    found = moments_of(nn.Sequential(layer), image, shape=(1, 64, 64))["0"]
    mean, covariance = by_definition(functional.unfold(image, 3, 1, 1, stride).mT)
    np.testing.assert_allclose(found.mean, mean, atol=0.08)
    np.testing.assert_allclose(found.covariance, covariance, atol=0.08)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moments_of(network, images())
    assert network.training
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    with pytest.raises(RuntimeError):
        moments_of(network, images(channels=5))
    assert not network[0]._forward_pre_hooks


def test_no_images_are_told():
    with pytest.raises(UserError, match="no image reached layer '0'"):
        moments_of(nn.Sequential(nn.Conv2d(4, 3, 3)))


@pytest.mark.parametrize("patch", [36, 4608])
def test_inputs_that_moved_are_compared_with_the_original_ones(monkeypatch, patch):
    monkeypatch.setattr(module, "_LARGEST_PATCH", patch - 1)
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3))
    other = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3))
    layer = find_layers(original, (4, 8, 8), "net")["1"]
    moments, shift = shifted_moments(original, other, layer, [images(), images(seed=1)])
    every = torch.cat([images(), images(seed=1)])

    def seen_behind(first):
        patches = functional.unfold(first(every), 3).detach().double()  # (N, S D^2, places)
        if patch == 36:
            return patches.unflatten(1, (4, 9)).permute(0, 3, 2, 1).flatten(0, 2).numpy()
        return patches.mT.flatten(0, 1).numpy()

    before, now = seen_behind(original[0]), seen_behind(other[0])
    np.testing.assert_allclose(shift.mean[0], before.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.mean[0], now.mean(0), atol=1e-6)
    crossed = (before - before.mean(0)).T @ (now - now.mean(0)) / len(now)
    np.testing.assert_allclose(shift.crossed[0], crossed, atol=1e-5)


def test_inputs_far_from_zero_keep_their_covariance():
    """The squares of the mean are a million times those of the deviations."""
    layer = nn.Conv2d(4, 6, 3)
    near = moments_of(nn.Sequential(layer), images(), images(seed=1))["0"]
    far = moments_of(nn.Sequential(layer), images() + 1000, images(seed=1) + 1000)["0"]
    np.testing.assert_allclose(far.mean, near.mean + 1000, atol=1e-3)
    np.testing.assert_allclose(far.covariance, near.covariance, atol=1e-3)
    np.linalg.cholesky(far.covariance[0] + 1e-3 * np.eye(36))
