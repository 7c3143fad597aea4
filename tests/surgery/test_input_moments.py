"""Test the measurement of input moments on real images."""

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


def mean_and_covariance(samples):
    """Return the mean and covariance of samples (g, count, n), computed by definition."""
    samples = samples.double()
    centered = samples - samples.mean(1, keepdim=True)
    return samples.mean(1), centered.mT @ centered / samples.shape[1]


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
        {"kernel_size": 1, "stride": (2, 3), "padding": (0, 1)},
    ],
)
def test_patches_match_unfold(geometry):
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, **geometry})
    moments = moments_of(nn.Sequential(layer), images(), images(seed=1))["0"]
    all_images = torch.cat([images(), images(seed=1)])
    patches = functional.unfold(
        all_images, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    by_group = patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    mean, covariance = mean_and_covariance(by_group)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-5)


def test_patches_and_kernels_have_the_same_order():
    """The kernel and the covariance therefore give the variance of the layer's output."""
    layer = nn.Conv2d(4, 6, (3, 2), groups=2, bias=False)
    moments = moments_of(nn.Sequential(layer), images())["0"]
    kernel = layer.weight.detach().double().reshape(2, 3, -1).numpy()
    variances = np.einsum("gtn,gnm,gtm->gt", kernel, moments.covariance, kernel).ravel()
    expected = layer(images()).detach().transpose(0, 1).flatten(1).var(1, correction=0)
    np.testing.assert_allclose(variances, expected, rtol=1e-4)


def test_flattened_map_is_the_patch_of_a_linear_layer():
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 6 * 6, 5, bias=False))
    moments = moments_of(network, images())["2"]
    assert moments.covariance.shape == (1, 108, 108)
    matrix = network[2].weight.detach().numpy()
    variances = np.einsum("tn,nm,tm->t", matrix, moments.covariance[0], matrix)
    expected = network(images()).detach().var(0, correction=0)
    np.testing.assert_allclose(variances, expected, rtol=1e-4)


def test_tokens_are_samples():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, images):
            return self.linear(input=images.flatten(2).mT).mean(1)

    moments = moments_of(Tokens(), images())["linear"]
    mean, covariance = mean_and_covariance(images().flatten(2).mT.reshape(1, -1, 4))
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 16, 50])
def test_moments_do_not_depend_on_the_size_of_batches(size):
    samples = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    network = nn.Sequential(nn.Linear(64, 2))
    moments = moments_of(network, *samples.split(size), shape=(64,))["0"]
    mean, covariance = mean_and_covariance(samples[None])
    assert moments.samples == 50
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-5)


def test_large_patches_give_the_covariance_of_channels_only(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PATCH", 35)
    layer = nn.Conv2d(4, 6, 3)
    moments = moments_of(nn.Sequential(layer), images())["0"]
    patches = functional.unfold(images(), 3).unflatten(1, (4, 9))  # (N, S, D^2, positions)
    mean, covariance = mean_and_covariance(patches.permute(0, 2, 3, 1).reshape(1, -1, 4))
    np.testing.assert_allclose(moments.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_positions_are_spread_over_a_large_map(stride):
    layer = nn.Conv2d(1, 1, 3, padding=1, stride=stride)
    # The brightness grows with the row and the column of a pixel.
    ramp = torch.linspace(-1, 1, 64)
    image = (ramp[:, None] + ramp)[None, None]
    moments = moments_of(nn.Sequential(layer), image, shape=(1, 64, 64))["0"]
    mean, covariance = mean_and_covariance(functional.unfold(image, 3, 1, 1, stride).mT)
    np.testing.assert_allclose(moments.mean, mean, atol=0.08)
    np.testing.assert_allclose(moments.covariance, covariance, atol=0.08)


@pytest.mark.parametrize(
    ("size", "samples"),
    [((2, 2), 4), ((64, 64), 64), ((1, 40), 40), ((6, 80), 60), ((3, 4000), 63)],
)
def test_a_short_axis_leaves_more_positions_to_the_other_axis(size, samples):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    moments = moments_of(nn.Sequential(nn.Conv2d(3, 4, 1)), image, shape=(3, *size))["0"]
    assert moments.samples == 2 * samples


def test_network_is_not_changed():
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moments_of(network, images())
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(RuntimeError):
        moments_of(network, images(channels=5))
    assert not network[0]._forward_pre_hooks


def test_no_images_raise_an_error():
    with pytest.raises(UserError, match="no image reached layer '0'"):
        moments_of(nn.Sequential(nn.Conv2d(4, 3, 3)))


@pytest.mark.parametrize("patch", [36, 4608])
def test_shift_relative_to_the_original_network(monkeypatch, patch):
    monkeypatch.setattr(module, "_LARGEST_PATCH", patch - 1)
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3))
    changed = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3))
    layer = find_layers(original, (4, 8, 8), "net")["1"]
    moments, shift = shifted_moments(original, changed, layer, [images(), images(seed=1)])
    all_images = torch.cat([images(), images(seed=1)])

    def samples_after(first):
        patches = functional.unfold(first(all_images), 3).detach().double()
        # Patches have the shape (N, S D^2, positions).
        if patch == 36:
            return patches.unflatten(1, (4, 9)).permute(0, 3, 2, 1).flatten(0, 2).numpy()
        return patches.mT.flatten(0, 1).numpy()

    before, now = samples_after(original[0]), samples_after(changed[0])
    np.testing.assert_allclose(shift.mean[0], before.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.mean[0], now.mean(0), atol=1e-6)
    crossed = (before - before.mean(0)).T @ (now - now.mean(0)) / len(now)
    np.testing.assert_allclose(shift.crossed[0], crossed, atol=1e-5)


def test_inputs_far_from_zero_keep_their_covariance():
    """The squared mean is a million times larger than the variance."""
    layer = nn.Conv2d(4, 6, 3)
    near = moments_of(nn.Sequential(layer), images(), images(seed=1))["0"]
    far = moments_of(nn.Sequential(layer), images() + 1000, images(seed=1) + 1000)["0"]
    np.testing.assert_allclose(far.mean, near.mean + 1000, atol=1e-3)
    np.testing.assert_allclose(far.covariance, near.covariance, atol=1e-3)
    np.linalg.cholesky(far.covariance[0] + 1e-3 * np.eye(36))
