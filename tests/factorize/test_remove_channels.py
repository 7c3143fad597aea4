"""Channel removal: which channels stay, and the kernel for them."""

import itertools

import numpy as np
import pytest

from lowrank.core.layers import Layer, PlainLayer
from lowrank.factorize import Moments, decompose, get_factorization, remove_channels
from lowrank.factorize.moments import output_error_squared, regularized
from lowrank.factorize.reconstruction import reconstruct

METHOD = get_factorization("remove_channels")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def covariance_of(size, seed=1):
    """Return a covariance of correlated entries."""
    root = random(size, size, seed=seed)
    return regularized(root @ root.T / size)


def error(kernel, rank, covariance):
    factors = METHOD.factors_for_outputs(kernel, (rank,), covariance)
    layer = PlainLayer(kernel.shape[1], kernel.shape[0], kernel.shape[2:])
    rebuilt = reconstruct(METHOD.sequence(layer, (rank,)), factors)
    return output_error_squared(kernel - rebuilt, covariance)


def best_error(kernel, channels, covariance):
    """Return the smallest error with these channels of a 1 x 1 kernel, by least squares."""
    matrix, channels = kernel[:, :, 0, 0], list(channels)
    root = np.linalg.cholesky(covariance)
    solved = np.linalg.lstsq(root[channels].T, (matrix @ root).T, rcond=None)[0].T
    return float(np.square(matrix @ root - solved @ root[channels]).sum())


@pytest.mark.parametrize("rank", range(1, 9))
def test_few_channels_are_near_the_best_subset(rank):
    kernel, covariance = random(7, 8, 1, 1), covariance_of(8)
    subsets = itertools.combinations(range(8), rank)
    best = min(best_error(kernel, channels, covariance) for channels in subsets)
    assert best <= error(kernel, rank, covariance) * (1 + 1e-9) + 1e-9
    assert error(kernel, rank, covariance) < 1.3 * best + 1e-9


@pytest.mark.parametrize("size", [8, 300])
def test_kept_is_the_norm_without_the_error(size):
    """With 300 channels, several are removed at a time."""
    kernel, covariance = random(5, size, 1, 1), covariance_of(size)
    kept = METHOD.kept_of_outputs(kernel, covariance)
    whole = output_error_squared(kernel, covariance)
    for rank in (1, size // 2, size - 1, size):
        assert whole - kept[rank - 1] == pytest.approx(
            error(kernel, rank, covariance), rel=1e-6, abs=1e-9 * whole
        )
    assert (np.diff(kept) >= 0).all()


def test_the_window_is_solved_with_all_taps():
    kernel, covariance = random(5, 6, 3, 3), covariance_of(54)
    selection, solved = METHOD.factors_for_outputs(kernel, (4,), covariance)
    channels = selection[:, :, 0, 0].argmax(1)
    rows = (channels[:, None] * 9 + np.arange(9)).ravel()
    root = np.linalg.cholesky(covariance)
    expected = np.linalg.lstsq(root[rows].T, (kernel.reshape(5, -1) @ root).T, rcond=None)[0].T
    np.testing.assert_allclose(solved.reshape(5, -1), expected, rtol=1e-6, atol=1e-9)


def test_a_copied_channel_is_removed_at_no_loss():
    inputs = random(500, 6)
    inputs[:, 4] = 2 * inputs[:, 1]
    kernel = random(3, 6, 1, 1, seed=2)
    covariance = np.cov(inputs.T)
    moments = Moments(inputs.mean(0)[None], covariance[None], 500)
    layer = PlainLayer(6, 3)
    result = decompose(METHOD, layer, kernel, None, (5,), moments)
    expected = inputs @ kernel[:, :, 0, 0].T
    rebuilt = reconstruct(result.sequence, result.weights)[:, :, 0, 0]
    outputs = inputs @ rebuilt.T + result.bias
    np.testing.assert_allclose(outputs, expected, atol=2e-3 * np.abs(expected).max())


def test_all_ranks_of_a_layer_share_an_elimination(monkeypatch):
    eliminated = []

    def counted(*arguments):
        eliminated.append(arguments)
        return eliminate(*arguments)

    eliminate = remove_channels._eliminate
    monkeypatch.setattr(remove_channels, "_eliminate", counted)
    monkeypatch.setattr(remove_channels, "_eliminations", {})
    monkeypatch.setattr(remove_channels, "_KEPT_ELIMINATIONS", 1)
    random = np.random.default_rng(3)
    covariance, other = (array @ array.T + np.eye(6) for array in random.normal(size=(2, 6, 6)))
    kernel, method = random.normal(size=(4, 6, 1, 1)), get_factorization("remove_channels")
    for rank in (2, 3, 4):
        method.factors_for_outputs(kernel, (rank,), covariance.copy())
    assert len(eliminated) == 1
    method.factors_for_outputs(kernel, (2,), other)
    # Only the last elimination is kept here.
    method.factors_for_outputs(kernel, (2,), covariance)
    assert len(eliminated) == 3


def test_without_moments_the_largest_weights_stay():
    kernel = random(4, 5, 3, 3) * np.array([3.0, 0.1, 2.0, 0.2, 1.0])[:, None, None]
    selection, rest = METHOD.factors(kernel, (3,))
    assert selection[:, :, 0, 0].argmax(1).tolist() == [0, 2, 4]
    np.testing.assert_array_equal(rest, kernel[:, [0, 2, 4]])


def test_the_selection_costs_nothing():
    layer = PlainLayer(8, 12, (3, 3), padding=(1, 1), bias=True)
    selection, rest = METHOD.sequence(layer, (5,))
    assert selection.selects
    assert (selection.macs((9, 9)), selection.parameters) == (0, 0)
    assert rest == PlainLayer(5, 12, (3, 3), padding=(1, 1), bias=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "do not come from one layer"), ({"fed_by": "a", "groups": 2}, "several groups")],
)
def test_layers_that_it_cannot_change(fields, reason):
    assert reason in METHOD.applies_to(Layer(8, 8, name="b", **fields))


def test_a_fed_layer_can_be_changed():
    assert METHOD.applies_to(Layer(8, 8, name="b", fed_by="a")) is None
