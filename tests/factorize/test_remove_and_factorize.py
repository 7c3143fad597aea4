"""Channel removal together with factors for the channels that stay."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import get_factorization
from lowrank.factorize.moments import output_error_squared, regularized, weighted_factors
from lowrank.factorize.reconstruction import reconstruct

REMOVAL = get_factorization("remove_channels")
INNER = {
    "remove_channels_spatial_svd": get_factorization("spatial_svd"),
    "remove_channels_svd": get_factorization("svd"),
}
CHANNELS, OUTPUTS, WINDOW = 8, 7, (3, 3)
LAYER = PlainLayer(CHANNELS, OUTPUTS, WINDOW)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


KERNEL = random(OUTPUTS, CHANNELS, *WINDOW)


def covariance_of(size, seed=1):
    """Return a covariance of correlated entries."""
    root = random(size, size, seed=seed)
    return regularized(root @ root.T / size)


def rebuilt(method, ranks, covariance):
    factors = weighted_factors(method, LAYER, KERNEL.copy(), ranks, covariance)
    return reconstruct(method.sequence(LAYER, ranks), factors)


def error(method, ranks, covariance):
    return output_error_squared(KERNEL - rebuilt(method, ranks, covariance), covariance)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("size", [CHANNELS, CHANNELS * 9])
def test_each_part_alone_gives_the_kernel_of_the_part(name, size):
    method, inner, covariance = get_factorization(name), INNER[name], covariance_of(size)
    (full,) = inner.full_ranks(PlainLayer(5, OUTPUTS, WINDOW))
    removed = rebuilt(REMOVAL, (5,), covariance)
    np.testing.assert_allclose(rebuilt(method, (5, full), covariance), removed, atol=1e-8)
    # A kernel in the norm of patches is solved, which leaves rounding errors.
    factored = rebuilt(inner, (4,), covariance)
    np.testing.assert_allclose(rebuilt(method, (CHANNELS, 4), covariance), factored, atol=1e-6)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("size", [CHANNELS, CHANNELS * 9])
def test_the_squared_errors_of_both_parts_add_up(name, size):
    method, covariance = get_factorization(name), covariance_of(size)
    solved = rebuilt(REMOVAL, (5,), covariance)
    of_factors = output_error_squared(solved - rebuilt(method, (5, 3), covariance), covariance)
    assert error(method, (5, 3), covariance) == pytest.approx(
        error(REMOVAL, (5,), covariance) + of_factors
    )


@pytest.mark.parametrize("name", INNER)
def test_no_more_is_lost_than_promised(name):
    method, covariance = get_factorization(name), covariance_of(CHANNELS)
    kept, whole = (
        method.kept_of_outputs(KERNEL, covariance),
        output_error_squared(KERNEL, covariance),
    )
    assert kept.shape == method.full_ranks(LAYER)
    assert kept[-1, -1] == pytest.approx(whole)
    assert (np.diff(kept, axis=0) >= 0).all()
    assert (np.diff(kept, axis=1) >= -1e-9).all()
    for ranks in ((2, 2), (5, 3), (8, 4), (6, OUTPUTS)):
        promised = kept[ranks[0] - 1, ranks[1] - 1]
        assert promised <= whole - error(method, ranks, covariance) + 1e-9 * whole


@pytest.mark.parametrize("name", INNER)
def test_ranks_are_limited_by_the_channels_that_stay(name):
    method = get_factorization(name)
    channels, rank = method.consistent(LAYER, (1, 100))
    assert (channels, rank) == (1, *INNER[name].full_ranks(PlainLayer(1, OUTPUTS, WINDOW)))


def test_a_layer_without_a_feeder_is_refused():
    grouped = PlainLayer(8, 8, (3, 3), groups=2)
    for name in INNER:
        reason = get_factorization(name).applies_to(grouped)
        assert reason == "remove_channels: the layer has several groups"
