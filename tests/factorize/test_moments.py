"""Factors that approximate a layer's outputs on real inputs."""

from dataclasses import replace

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import (
    FACTORIZATIONS,
    Moments,
    Shift,
    carried_over,
    decompose,
    get_factorization,
    one_group,
    reconstruct,
)
from lowrank.factorize.moments import output_error_squared

ALL = sorted(FACTORIZATIONS)
# Factorizations whose optimum is known in closed form.
SVDS = ["svd", "channel_svd", "tucker1"]


def layer_for(groups=1, **fields):
    return PlainLayer(12 * groups, 16 * groups, kernel=(3, 2), groups=groups, **fields)


def kernel_for(layer, seed=0):
    return np.random.default_rng(seed).standard_normal(layer.weight_shape).astype(np.float32)


def moments_for(layer, *, patches=True, seed=1):
    """Return moments of inputs around a mean, with most of their variance in a few directions."""
    channels = layer.in_channels // layer.groups
    size = channels * 6 if patches else channels
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(layer.groups):
        directions = np.linalg.qr(generator.standard_normal((size, size)))[0]
        scales = np.exp(-np.arange(size) / (size / 6))
        samples.append(0.3 + (generator.standard_normal((4 * size, size)) * scales) @ directions)
    samples = np.stack(samples)
    count, mean = samples.shape[1], samples.mean(1)
    samples -= mean[:, None]
    return Moments(mean, samples.swapaxes(1, 2) @ samples / count, count)


def ranks_at(name, layer, share=0.5):
    method, group = get_factorization(name), one_group(layer)
    ranks = (max(1, round(share * full)) for full in method.full_ranks(group))
    return method.consistent(group, tuple(ranks))


def decomposed(name, layer, moments, ranks=None, bias=None):
    ranks = ranks or ranks_at(name, layer)
    return decompose(get_factorization(name), layer, kernel_for(layer), bias, ranks, moments)


def error_on(layer, result, moments):
    """Return the output error by its definition, from the stored factors."""
    difference = kernel_for(layer).astype(np.float64) - reconstruct(result.sequence, result.weights)
    by_group = difference.reshape(layer.groups, -1, *difference.shape[1:])
    return sum(map(output_error_squared, by_group, moments.covariance))


# For every factorization, `lowrank.testing` checks that the error falls.
@pytest.mark.parametrize("name", ["svd", "spatial_svd", "tucker2", "cp_tpm"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("patches", [True, False])
def test_moments_lower_the_output_error(name, groups, patches):
    layer = layer_for(groups)
    moments = moments_for(layer, patches=patches)
    with_moments, without = decomposed(name, layer, moments), decomposed(name, layer, None)
    assert error_on(layer, with_moments, moments) < 0.8 * error_on(layer, without, moments)
    assert with_moments.relative_error > without.relative_error
    assert without.output_error is None
    norm_squared = sum(
        map(
            output_error_squared,
            kernel_for(layer).reshape(groups, 16, 12, 3, 2),
            moments.covariance,
        )
    )
    reported = with_moments.output_error**2 * norm_squared
    assert error_on(layer, with_moments, moments) == pytest.approx(reported, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_full_rank_is_exact(name):
    layer = layer_for()
    full = get_factorization(name).full_ranks(layer)
    result = decomposed(name, layer, moments_for(layer), ranks=full)
    # Not exactly 0 because of rounding in the root of an ill-conditioned covariance.
    assert result.output_error < 1e-3


@pytest.mark.parametrize("name", SVDS)
def test_the_optimum_is_reached(name):
    layer, (rank,) = layer_for(), (5,)
    moments = moments_for(layer)
    result = decomposed(name, layer, moments, ranks=(rank,))
    values, vectors = np.linalg.eigh(moments.covariance[0])
    root = vectors * np.sqrt(values)
    singular_values = np.linalg.svd(kernel_for(layer).reshape(16, -1) @ root, compute_uv=False)
    best = float(np.sum(singular_values[rank:] ** 2))
    assert error_on(layer, result, moments) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_white_inputs_give_the_error_of_the_weights(name):
    layer = layer_for()
    white = Moments(np.zeros((1, 72)), np.eye(72)[None], 1000)
    with_moments, without = decomposed(name, layer, white), decomposed(name, layer, None)
    assert with_moments.relative_error <= without.relative_error * (1 + 1e-4)
    assert with_moments.output_error == pytest.approx(with_moments.relative_error, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_last_factor_is_optimal(name):
    """With patches, no other last factor gives a smaller output error."""
    layer = layer_for()
    moments = moments_for(layer)
    result = decomposed(name, layer, moments)
    best = error_on(layer, result, moments)
    generator = np.random.default_rng(0)
    for _ in range(5):
        last = result.weights[-1]
        perturbed = last + 1e-2 * np.abs(last).mean() * generator.standard_normal(last.shape)
        weights = (*result.weights[:-1], perturbed.astype(np.float32))
        other = type(result)(result.sequence, weights, None, 0.0)
        assert error_on(layer, other, moments) > best * (1 - 1e-6)


@pytest.mark.parametrize("patches", [True, False])
def test_the_outer_factors_of_tucker2_are_orthonormal(patches):
    """Training starts well conditioned, as without moments."""
    layer = layer_for()
    first, _, last = decomposed("tucker2", layer, moments_for(layer, patches=patches)).weights
    first, last = first.reshape(len(first), -1), last.reshape(len(last), -1)
    np.testing.assert_allclose(first @ first.T, np.eye(len(first)), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, np.eye(last.shape[1]), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("patches", [True, False])
def test_the_bias_corrects_the_mean_error(groups, patches):
    layer = layer_for(groups, bias=True)
    bias = np.arange(16 * groups, dtype=np.float32)
    moments = moments_for(layer, patches=patches)
    result = decomposed("tucker2", layer, moments, bias=bias)
    difference = kernel_for(layer) - reconstruct(result.sequence, result.weights)
    mean = moments.mean if patches else np.repeat(moments.mean, 6, axis=1)
    expected = np.einsum("gtn,gn->gt", difference.reshape(groups, 16, 72), mean).ravel()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result.bias - bias, expected, atol=1e-4)
    # A layer without a bias gets one.
    without = decomposed("tucker2", layer_for(groups), moments)
    np.testing.assert_allclose(without.bias, expected, atol=1e-4)
    assert [plain.bias for plain in without.sequence] == [False, False, True]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("covariance", [np.zeros((72, 72)), np.ones((72, 72)), 1e-30 * np.eye(72)])
def test_moments_of_low_rank_give_finite_factors(name, covariance):
    """Test a dead layer, identical inputs and tiny inputs."""
    layer = layer_for()
    result = decomposed(name, layer, Moments(np.zeros((1, 72)), covariance[None], 1000))
    assert all(np.isfinite(weight).all() for weight in result.weights)
    assert result.relative_error < 1.5


def test_the_same_moments_give_the_same_bytes():
    layer = layer_for()
    first, second = (decomposed("tucker2", layer, moments_for(layer)) for _ in range(2))
    assert all(
        a.tobytes() == b.tobytes() for a, b in zip(first.weights, second.weights, strict=True)
    )


def original_and_changed_inputs(layer, *, patches=True, noise=0.3):
    """Return samples (g, count, n) of the original inputs and of changed inputs."""
    size = layer.in_channels // layer.groups * (6 if patches else 1)
    generator = np.random.default_rng(3)
    original = 0.5 + generator.standard_normal((layer.groups, 40 * size, size))
    mixing = np.eye(size) + noise * generator.standard_normal((layer.groups, size, size))
    return original, original @ mixing + 0.2 + noise * generator.standard_normal(original.shape)


def moments_and_shift(original, now):
    centered = [samples - samples.mean(1, keepdims=True) for samples in (original, now)]
    count = now.shape[1]
    covariance, crossed = (
        samples.swapaxes(1, 2) @ centered[1] / count for samples in centered[::-1]
    )
    return Moments(now.mean(1), covariance, count), Shift(original.mean(1), crossed)


@pytest.mark.parametrize("groups", [1, 2])
def test_carried_over_is_the_regression_on_the_current_inputs(groups):
    layer = layer_for(groups)
    original, now = original_and_changed_inputs(layer)
    kernel, bias = kernel_for(layer), np.linspace(-1, 1, layer.out_channels)
    new_kernel, new_bias = carried_over(kernel, bias, *moments_and_shift(original, now))
    for group, (x0, x) in enumerate(zip(original, now, strict=True)):
        rows = slice(group * 16, group * 16 + 16)
        targets = x0 @ kernel[rows].reshape(16, -1).T + bias[rows]
        with_one = np.concatenate([x, np.ones((len(x), 1))], 1)
        best = with_one @ np.linalg.lstsq(with_one, targets, rcond=None)[0]
        outputs = x @ new_kernel[rows].reshape(16, -1).T + new_bias[rows]
        # Equal except for the ridge, 1 / 160 for 40 samples of each entry.
        squared = [np.square(values - targets).sum() for values in (best, outputs)]
        assert squared[0] <= squared[1] * (1 + 1e-9) <= 1.04 * squared[0]
        np.testing.assert_allclose(outputs.mean(0), targets.mean(0), atol=1e-5)


@pytest.mark.parametrize("samples", [20, 40, 4000])
def test_carried_over_does_not_fit_the_errors_of_few_samples(samples):
    random = np.random.default_rng(3)
    kernel = random.standard_normal((16, 24, 1, 1))

    def inputs(count):
        original = random.standard_normal((count, 24)) * np.linspace(2, 0.2, 24)
        return original, original + 0.3 * random.standard_normal((count, 24))

    (x0, x), (new_x0, new_x) = inputs(samples), inputs(5000)
    fitted, bias = carried_over(kernel, None, *moments_and_shift(x0[None], x[None]))
    weights = np.linalg.lstsq(x, x0 @ kernel[..., 0, 0].T, rcond=None)[0]
    targets = new_x0 @ kernel[..., 0, 0].T
    least_squares, ours = (
        np.square(outputs - targets).mean()
        for outputs in (new_x @ weights, new_x @ fitted[..., 0, 0].T + bias)
    )
    assert ours < (0.8 if samples < 100 else 1.01) * least_squares


def test_equal_inputs_at_all_positions_count_as_the_square_root_of_their_number():
    """256 times as many samples, at 256 positions of an image, are 16 times as many."""
    layer = layer_for(1)
    original, now = original_and_changed_inputs(layer)
    kernel = kernel_for(layer)
    moments, shift = moments_and_shift(original, now)
    expected, _ = carried_over(kernel, None, replace(moments, samples=16 * moments.samples), shift)
    many = replace(moments, samples=256 * moments.samples)
    actual, _ = carried_over(kernel, None, many, shift, positions=256)
    np.testing.assert_array_equal(actual, expected)


def test_with_channel_moments_every_tap_is_treated_separately():
    layer = layer_for(2)
    original, now = original_and_changed_inputs(layer, patches=False)
    kernel = kernel_for(layer)
    new_kernel, bias = carried_over(kernel, None, *moments_and_shift(original, now))
    one_tap = PlainLayer(24, 32, groups=2)
    for row, column in np.ndindex(3, 2):
        tap_kernel, _ = carried_over(
            kernel[:, :, row : row + 1, column : column + 1],
            None,
            *moments_and_shift(original, now),
        )
        assert tap_kernel.shape == one_tap.weight_shape
        np.testing.assert_allclose(new_kernel[:, :, row, column], tap_kernel[:, :, 0, 0], atol=1e-5)
    # The bias corrects the mean error.
    mean_error = np.einsum("gtskl,gs->gt", kernel.reshape(2, 16, 12, 3, 2), original.mean(1))
    mean_error -= np.einsum("gtskl,gs->gt", new_kernel.reshape(2, 16, 12, 3, 2), now.mean(1))
    np.testing.assert_allclose(bias, mean_error.ravel(), atol=1e-4)


def test_unchanged_inputs_leave_the_layer_unchanged():
    layer = layer_for(2)
    original, _ = original_and_changed_inputs(layer)
    kernel, bias = kernel_for(layer), np.ones(layer.out_channels, np.float32)
    new_kernel, new_bias = carried_over(kernel, bias, *moments_and_shift(original, original))
    np.testing.assert_allclose(new_kernel, kernel, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias, atol=1e-5)


def test_without_data_the_kernel_is_unchanged():
    layer = layer_for()
    zeros = np.zeros((1, 72, 72))
    moments, shift = Moments(np.zeros((1, 72)), zeros, 9), Shift(np.zeros((1, 72)), zeros)
    new_kernel, bias = carried_over(kernel_for(layer), None, moments, shift)
    np.testing.assert_allclose(new_kernel, kernel_for(layer), atol=1e-6)
    assert not bias.any()
