"""Factors that keep a layer's outputs on real inputs."""

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
    grouped_sequence,
    one_group,
    reconstruct,
)
from lowrank.factorize.moments import output_error_squared

ALL = sorted(FACTORIZATIONS)
# The optimum of their shape is known in closed form.
SVDS = ["svd", "channel_svd", "tucker1"]


def layer_for(groups=1, **fields):
    return PlainLayer(12 * groups, 16 * groups, kernel=(3, 2), groups=groups, **fields)


def kernel_for(layer, seed=0):
    return np.random.default_rng(seed).standard_normal(layer.weight_shape).astype(np.float32)


def moments_for(layer, *, patches=True, seed=1):
    """Of inputs that lie mostly in few directions, around a mean."""
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
    """The output's error by the definition, for the factors as they are stored and their bias."""
    difference = kernel_for(layer).astype(np.float64) - reconstruct(result.sequence, result.weights)
    by_group = difference.reshape(layer.groups, -1, *difference.shape[1:])
    return sum(map(output_error_squared, by_group, moments.covariance))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("patches", [True, False])
def test_outputs_are_kept_better_than_by_the_weights_alone(name, groups, patches):
    layer = layer_for(groups)
    moments = moments_for(layer, patches=patches)
    aware, blind = decomposed(name, layer, moments), decomposed(name, layer, None)
    assert error_on(layer, aware, moments) < 0.8 * error_on(layer, blind, moments)
    assert aware.relative_error > blind.relative_error
    assert blind.output_error is None
    of_zero = sum(
        map(
            output_error_squared,
            kernel_for(layer).reshape(groups, 16, 12, 3, 2),
            moments.covariance,
        )
    )
    stated = aware.output_error**2 * of_zero
    assert error_on(layer, aware, moments) == pytest.approx(stated, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_factors_fit_the_sequence(name):
    layer = layer_for(2)
    result = decomposed(name, layer, moments_for(layer))
    sequence = grouped_sequence(get_factorization(name), layer, ranks_at(name, layer))
    assert [weight.shape for weight in result.weights] == [each.weight_shape for each in sequence]
    assert all(np.isfinite(weight).all() for weight in result.weights)


@pytest.mark.parametrize("name", ALL)
def test_full_rank_is_exact(name):
    layer = layer_for()
    full = get_factorization(name).full_ranks(layer)
    result = decomposed(name, layer, moments_for(layer), ranks=full)
    # What rounding leaves of the root of an ill-conditioned moment.
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
    aware, blind = decomposed(name, layer, white), decomposed(name, layer, None)
    assert aware.relative_error <= blind.relative_error * (1 + 1e-4)
    assert aware.output_error == pytest.approx(aware.relative_error, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_last_layers_are_the_best_for_the_first(name):
    """With patches, no other last factor would keep the outputs better."""
    layer = layer_for()
    moments = moments_for(layer)
    result = decomposed(name, layer, moments)
    best = error_on(layer, result, moments)
    generator = np.random.default_rng(0)
    for _ in range(5):
        last = result.weights[-1]
        moved = last + 1e-2 * np.abs(last).mean() * generator.standard_normal(last.shape)
        weights = (*result.weights[:-1], moved.astype(np.float32))
        other = type(result)(result.sequence, weights, None, 0.0)
        assert error_on(layer, other, moments) > best * (1 - 1e-6)


@pytest.mark.parametrize("patches", [True, False])
def test_the_outer_factors_of_tucker2_are_orthonormal(patches):
    """As those of the weights alone: training starts well conditioned."""
    layer = layer_for()
    first, _, last = decomposed("tucker2", layer, moments_for(layer, patches=patches)).weights
    first, last = first.reshape(len(first), -1), last.reshape(len(last), -1)
    np.testing.assert_allclose(first @ first.T, np.eye(len(first)), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, np.eye(last.shape[1]), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("patches", [True, False])
def test_a_bias_takes_up_the_mean_error(groups, patches):
    layer = layer_for(groups, bias=True)
    bias = np.arange(16 * groups, dtype=np.float32)
    moments = moments_for(layer, patches=patches)
    result = decomposed("tucker2", layer, moments, bias=bias)
    lacking = kernel_for(layer) - reconstruct(result.sequence, result.weights)
    mean = moments.mean if patches else np.repeat(moments.mean, 6, axis=1)
    expected = np.einsum("gtn,gn->gt", lacking.reshape(groups, 16, 72), mean).ravel()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result.bias - bias, expected, atol=1e-4)
    # A layer without a bias gets one.
    without = decomposed("tucker2", layer_for(groups), moments)
    np.testing.assert_allclose(without.bias, expected, atol=1e-4)
    assert [plain.bias for plain in without.sequence] == [False, False, True]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("covariance", [np.zeros((72, 72)), np.ones((72, 72)), 1e-30 * np.eye(72)])
def test_moments_of_low_rank_give_finite_factors(name, covariance):
    """A dead layer, inputs that are all alike, tiny ones."""
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


def moved(layer, *, patches=True, noise=0.3):
    """Samples (g, count, n) of inputs that moved, and of the original ones."""
    size = layer.in_channels // layer.groups * (6 if patches else 1)
    generator = np.random.default_rng(3)
    before = 0.5 + generator.standard_normal((layer.groups, 40 * size, size))
    mixing = np.eye(size) + noise * generator.standard_normal((layer.groups, size, size))
    return before, before @ mixing + 0.2 + noise * generator.standard_normal(before.shape)


def described(before, now):
    centred = [each - each.mean(1, keepdims=True) for each in (before, now)]
    count = now.shape[1]
    covariance, crossed = (each.swapaxes(1, 2) @ centred[1] / count for each in centred[::-1])
    return Moments(now.mean(1), covariance, count), Shift(before.mean(1), crossed)


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_carried_over_is_the_regression_on_inputs_as_they_are_now(groups):
    layer = layer_for(groups)
    before, now = moved(layer)
    kernel, bias = kernel_for(layer), np.linspace(-1, 1, layer.out_channels)
    found, found_bias = carried_over(kernel, bias, *described(before, now))
    for group, (x0, x) in enumerate(zip(before, now, strict=True)):
        rows = slice(group * 16, group * 16 + 16)
        targets = x0 @ kernel[rows].reshape(16, -1).T + bias[rows]
        with_one = np.concatenate([x, np.ones((len(x), 1))], 1)
        best = with_one @ np.linalg.lstsq(with_one, targets, rcond=None)[0]
        answers = x @ found[rows].reshape(16, -1).T + found_bias[rows]
        # Up to the ridge, of a ten thousandth.
        squared = [np.square(each - targets).sum() for each in (best, answers)]
        assert squared[0] <= squared[1] * (1 + 1e-9) <= 1.001 * squared[0]
        np.testing.assert_allclose(answers.mean(0), targets.mean(0), atol=1e-5)


def test_by_channels_alone_every_tap_is_carried_over_alike():
    layer = layer_for(2)
    before, now = moved(layer, patches=False)
    kernel = kernel_for(layer)
    found, bias = carried_over(kernel, None, *described(before, now))
    one_tap = PlainLayer(24, 32, groups=2)
    for row, column in np.ndindex(3, 2):
        alone, _ = carried_over(
            kernel[:, :, row : row + 1, column : column + 1], None, *described(before, now)
        )
        assert alone.shape == one_tap.weight_shape
        np.testing.assert_allclose(found[:, :, row, column], alone[:, :, 0, 0], atol=1e-5)
    # On average nothing is missed.
    missed = np.einsum("gtskl,gs->gt", kernel.reshape(2, 16, 12, 3, 2), before.mean(1))
    missed -= np.einsum("gtskl,gs->gt", found.reshape(2, 16, 12, 3, 2), now.mean(1))
    np.testing.assert_allclose(bias, missed.ravel(), atol=1e-4)


def test_inputs_that_did_not_move_leave_the_layer_as_it_is():
    layer = layer_for(2)
    before, _ = moved(layer)
    kernel, bias = kernel_for(layer), np.ones(layer.out_channels, np.float32)
    found, found_bias = carried_over(kernel, bias, *described(before, before))
    np.testing.assert_allclose(found, kernel, atol=1e-6)
    np.testing.assert_allclose(found_bias, bias, atol=1e-5)


def test_where_the_images_show_nothing_the_kernel_stays():
    layer = layer_for()
    nothing = np.zeros((1, 72, 72))
    moments, shift = Moments(np.zeros((1, 72)), nothing, 9), Shift(np.zeros((1, 72)), nothing)
    found, bias = carried_over(kernel_for(layer), None, moments, shift)
    np.testing.assert_allclose(found, kernel_for(layer), atol=1e-6)
    assert not bias.any()
