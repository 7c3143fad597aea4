"""Rank of a noisy matrix by empirical variational Bayesian matrix factorization (EVBMF).

This is the global analytic solution of Nakajima, Sugiyama, Babacan & Tomioka, "Global analytic
solution of fully-observed variational Bayesian matrix factorization", JMLR 14, 2013. It depends
only on the singular values and the shape of the matrix.
"""

import math

import numpy as np

from lowrank.factorize.spectra import Spectrum

# On spectra of trained kernels the free energy has about a dozen local minima. A grid finds their
# valleys, and the lowest valleys are refined.
_GRID_POINTS = 256
_VALLEYS = 6
_REFINEMENTS = 8

# Lower limit of the noise, as a share of the largest squared singular value: rounding of float32.
_SMALLEST_NOISE = 1e-12


def evbmf_rank(spectrum: Spectrum) -> tuple[int, float]:
    """Return the number of singular values above the noise, and the noise variance.

    Parameters
    ----------
    spectrum
        Spectrum of a matrix of any shape; the solution uses the shorter side as L.

    Returns
    -------
    tuple of int and float
        The rank, which is 0 if everything is noise, and the estimated noise variance of one entry.
    """
    length, width = sorted((spectrum.rows, spectrum.columns))
    if length == 0 or spectrum.singular_values[0] == 0:
        return 0, 0.0
    largest = float(spectrum.singular_values[0])
    energies = (spectrum.singular_values / largest) ** 2
    mean = float(energies.mean())
    # With a mean squared singular value of 1, the result does not depend on the scale.
    energies = energies / mean
    alpha = length / width
    threshold = _threshold(alpha)
    noise = _noise(energies, alpha, threshold)
    rank = int(np.count_nonzero(energies > noise * threshold))
    return rank, noise * mean * largest**2 / width


def _threshold(alpha: float) -> float:
    """Return x_: a component stands out if g^2 / (M s^2) is above it (theorem 2 and corollary 1).

    It is (1 + t)(1 + alpha / t), where t is the root of phi(t) + phi(t / alpha) = 0. The function
    phi(z) = ln(1 + z) / z - 1/2 is decreasing and has its root just above 2.5.
    """

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    below, above = 2.5 * alpha, 2.6
    while below < (middle := (below + above) / 2) < above:
        if phi(middle) + phi(middle / alpha) > 0:
            below = middle
        else:
            above = middle
    return (1 + above) * (1 + alpha / above)


def _noise(energies: np.ndarray, alpha: float, threshold: float) -> float:
    """Return M s^2 for the variance that minimizes the free energy; the mean of `energies` is 1."""
    length = len(energies)
    # At most this many components can stand out (theorem 3 and its bounds on s^2).
    max_rank = min(math.ceil(length / (1 + alpha)) - 1, length)
    smallest = max(
        energies[max_rank] / threshold, energies[max_rank:].mean(), _SMALLEST_NOISE * energies[0]
    )
    if smallest >= 1:
        return 1.0
    grid = np.linspace(math.log(smallest), 0.0, _GRID_POINTS)
    values = _free_energy(grid, energies, alpha, threshold)
    padded = np.concatenate(([np.inf], values, [np.inf]))
    is_valley = (values <= padded[:-2]) & (values <= padded[2:])
    valleys = grid[is_valley][np.argsort(values[is_valley], kind="stable")[:_VALLEYS]]
    step = grid[1] - grid[0]
    for _ in range(_REFINEMENTS):
        # (valleys, 9): four points on each side, up to the neighbors of the previous iteration.
        points = np.clip(valleys[:, None] + step * np.linspace(-1, 1, 9), grid[0], 0.0)
        values = _free_energy(points.ravel(), energies, alpha, threshold).reshape(points.shape)
        valleys = np.take_along_axis(points, values.argmin(axis=1)[:, None], axis=1)[:, 0]
        step /= 4
    return math.exp(valleys[values.min(axis=1).argmin()])


def _free_energy(
    log_noise: np.ndarray, energies: np.ndarray, alpha: float, threshold: float
) -> np.ndarray:
    """Return F of the paper (theorem 3), without the terms that do not depend on the noise.

    Both branches contain -ln x = ln s^2 - ln(g^2 / M). The second part is left out, so that
    singular values of zero are harmless. x - tau is computed as 1 + alpha + alpha / tau, which
    avoids cancellation.

    Parameters
    ----------
    log_noise
        Shape (P,): ln(M s^2), in the unit of `energies`.
    energies
        Shape (L,): squared singular values, descending.

    Returns
    -------
    np.ndarray
        Shape (P,).
    """
    x = energies / np.exp(log_noise)[:, None]  # (P, L)
    # Components that do not stand out at any of these noise levels are summed without a closer
    # look.
    signals = int(np.count_nonzero(energies > threshold * np.exp(log_noise.min())))
    signal_x = x[:, :signals]
    stands_out = signal_x > threshold
    excess = np.where(stands_out, signal_x, threshold) - (1 + alpha)
    tau = (excess + np.sqrt(excess**2 - 4 * alpha)) / 2
    signal = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
    bounds: np.ndarray = (
        len(energies) * log_noise
        + np.where(stands_out, signal, signal_x).sum(axis=1)
        + x[:, signals:].sum(axis=1)
    )
    return bounds
