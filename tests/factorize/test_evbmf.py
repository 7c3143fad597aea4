"""EVBMF compared with planted ranks, symmetries and a direct transcription of the paper."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from lowrank.factorize import Spectrum, evbmf_rank
from lowrank.factorize.spectra import spectrum_of

seeds = st.integers(0, 2**32 - 1)


def planted(rows, columns, rank, noise, seed):
    """Return a matrix of that rank with random directions, plus noise of that deviation."""
    generator = np.random.default_rng(seed)
    left, right = (
        generator.standard_normal((rows, rank)),
        generator.standard_normal((rank, columns)),
    )
    return left @ right + noise * generator.standard_normal((rows, columns))


def power_law(length, exponent):
    return np.arange(1, length + 1) ** -exponent


def reference(singular_values, rows, columns, points=20_000):
    """Minimize the paper's F, term by term, by brute force; return the rank and noise variance."""
    length, width = min(rows, columns), max(rows, columns)
    alpha = length / width

    def phi(z):
        return math.log(1 + z) / z - 0.5

    root = brentq(lambda t: phi(t) + phi(t / alpha), 1e-3 * alpha, 10)
    limit = (1 + root) * (1 + alpha / root)
    max_rank = min(math.ceil(length / (1 + alpha)) - 1, length)
    squares = singular_values**2
    low = max(squares[max_rank] / (width * limit), squares[max_rank:].mean() / width)
    high = squares.sum() / (length * width)
    noises = np.exp(np.linspace(math.log(low), math.log(high), points))
    energy = np.zeros(points)
    for square in squares:
        x = square / (width * noises)
        excess = x - (1 + alpha)
        tau = (excess + np.sqrt(np.maximum(excess**2 - 4 * alpha, 0))) / 2
        tau = np.where(x > limit, tau, 1.0)
        signal = x - tau + np.log((tau + 1) / x) + alpha * np.log(tau / alpha + 1)
        energy += np.where(x > limit, signal, x - np.log(x))
    noise = noises[energy.argmin()]
    return int((singular_values > math.sqrt(width * noise * limit)).sum()), noise


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(20, 200), (64, 576), (60, 60), (200, 30)]),
    rank=st.integers(1, 8),
    noise=st.floats(0.01, 0.5),
    seed=seeds,
)
def test_a_planted_rank_and_noise_are_found(shape, rank, noise, seed):
    estimate, variance = evbmf_rank(spectrum_of(planted(*shape, rank, noise, seed)))
    assert estimate == rank
    assert variance == pytest.approx(noise**2, rel=0.2)


@pytest.mark.parametrize("shape", [(20, 200), (64, 576), (60, 60), (200, 30)])
def test_pure_noise_has_rank_zero(shape):
    ranks = [
        evbmf_rank(spectrum_of(np.random.default_rng(seed).standard_normal(shape)))[0]
        for seed in range(20)
    ]
    assert ranks.count(0) >= 19


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.floats(0.2, 1.5),
    length=st.integers(2, 80),
    ratio=st.floats(1, 20),
    power=st.integers(-6, 6),
)
def test_scale_and_orientation_do_not_matter(exponent, length, ratio, power):
    values, width = power_law(length, exponent), math.ceil(length * ratio)
    rank, noise = evbmf_rank(Spectrum(values, length, width))
    scaled_rank, scaled_noise = evbmf_rank(Spectrum(values * 10.0**power, width, length))
    assert scaled_rank == rank
    assert scaled_noise == pytest.approx(noise * 100.0**power, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.floats(0.1, 2),
    length=st.integers(2, 100),
    ratio=st.floats(1, 20),
    jitter=st.floats(0, 0.3),
    seed=seeds,
)
def test_the_lowest_of_many_minima_is_found(exponent, length, ratio, jitter, seed):
    generator = np.random.default_rng(seed)
    values = power_law(length, exponent) * np.exp(jitter * generator.standard_normal(length))
    values = np.sort(values)[::-1]
    width = math.ceil(length * ratio)
    rank, noise = evbmf_rank(Spectrum(values, length, width))
    expected_rank, expected_noise = reference(values, length, width)
    assert noise == pytest.approx(expected_noise, rel=1e-3)
    assert abs(rank - expected_rank) <= 1


def test_a_matrix_of_zeros_has_rank_zero():
    assert evbmf_rank(spectrum_of(np.zeros((4, 9)))) == (0, 0.0)


@pytest.mark.parametrize("width", [1, 9])
def test_a_single_row_is_noise(width):
    row = np.full((1, width), 2.0)
    rank, variance = evbmf_rank(spectrum_of(row))
    assert rank == 0
    assert variance == pytest.approx(4)


def test_an_exact_rank_is_found_without_noise():
    assert evbmf_rank(spectrum_of(planted(40, 90, 5, 0, seed=0)))[0] == 5
    assert evbmf_rank(spectrum_of(planted(40, 90, 5, 0, seed=0).astype(np.float32)))[0] == 5


@pytest.mark.parametrize("value", [0.0, 1e-12])
def test_dead_filters_do_not_change_the_rank(value):
    alive = planted(64, 576, 6, 0.3, seed=0)
    with_dead = np.full((128, 640), value)
    with_dead[::2, :576] = alive
    rank, variance = evbmf_rank(spectrum_of(with_dead))
    assert rank == 6
    assert variance == pytest.approx(evbmf_rank(spectrum_of(alive))[1], rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7)])
def test_spectrum_equals_the_svd(shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spectrum = spectrum_of(matrix)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values, expected, rtol=1e-10)
    assert (spectrum.rows, spectrum.columns) == shape
