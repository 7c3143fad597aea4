"""The rank of a noisy matrix by empirical variational Bayesian matrix factorization (EVBMF).

The global analytic solution of Nakajima, Sugiyama, Babacan & Tomioka, "Global analytic solution
of fully-observed variational Bayesian matrix factorization", JMLR 14, 2013. Only the singular
values and the shape of the matrix enter it.
"""

import math

import numpy as np

from lowrank.factorize.spectra import Spectrum

# The free energy has a dozen local minima on spectra of trained kernels: a grid finds their
# valleys, and the lowest few are refined.
_GRID_POINTS = 256
_VALLEYS = 6
_REFINEMENTS = 8

# Noise is sought down to this share of the largest squared singular value: float32's rounding.
_SMALLEST_NOISE = 1e-12


def evbmf_rank(spectrum: Spectrum) -> tuple[int, float]:
    """The number of singular values that stand out of the noise, and the noise variance.

    Parameters
    ----------
    spectrum
        Of a matrix of either orientation: the solution takes the shorter side as L.

    Returns
    -------
    tuple of int and float
        The rank, 0 where all is noise, and the estimated variance of the noise in one entry.
    """
    length, width = sorted((spectrum.rows, spectrum.columns))
    if length == 0 or spectrum.singular_values[0] == 0:
        return 0, 0.0
    largest = float(spectrum.singular_values[0])
    energies = (spectrum.singular_values / largest) ** 2
    mean = float(energies.mean())
    # In units in which the mean squared singular value is 1, the result cannot depend on scale.
    energies = energies / mean
    alpha = length / width
    threshold = _threshold(alpha)
    noise = _noise(energies, alpha, threshold)
    rank = int(np.count_nonzero(energies > noise * threshold))
    return rank, noise * mean * largest**2 / width


def _threshold(alpha: float) -> float:
    """x_: a component stands out when g^2 / (M s^2) is above it (theorem 2 and corollary 1).

    It is (1 + t)(1 + alpha / t), t the root of phi(t) + phi(t / alpha) = 0, where phi(z) =
    ln(1 + z) / z - 1/2 falls and has its root just above 2.5.
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
    """M s^2, the variance that minimises the free energy, for energies whose mean is 1."""
    length = len(energies)
    # No more than this many components can stand out (theorem 3 and its bounds on s^2).
    most = min(math.ceil(length / (1 + alpha)) - 1, length)
    smallest = max(
        energies[most] / threshold, energies[most:].mean(), _SMALLEST_NOISE * energies[0]
    )
    if smallest >= 1:
        return 1.0
    grid = np.linspace(math.log(smallest), 0.0, _GRID_POINTS)
    values = _free_energy(grid, energies, alpha, threshold)
    walled = np.concatenate(([np.inf], values, [np.inf]))
    is_valley = (values <= walled[:-2]) & (values <= walled[2:])
    valleys = grid[is_valley][np.argsort(values[is_valley], kind="stable")[:_VALLEYS]]
    step = grid[1] - grid[0]
    for _ in range(_REFINEMENTS):
        # (valleys, 9): four points on each side, up to the neighbours of the last round.
        points = np.clip(valleys[:, None] + step * np.linspace(-1, 1, 9), grid[0], 0.0)
        values = _free_energy(points.ravel(), energies, alpha, threshold).reshape(points.shape)
        valleys = np.take_along_axis(points, values.argmin(axis=1)[:, None], axis=1)[:, 0]
        step /= 4
    return math.exp(valleys[values.min(axis=1).argmin()])


def _free_energy(
    log_noise: np.ndarray, energies: np.ndarray, alpha: float, threshold: float
) -> np.ndarray:
    """F of the paper (theorem 3), without the terms that do not depend on the noise.

    Both branches hold -ln x = ln s^2 - ln(g^2 / M): leaving the second part out keeps singular
    values of zero harmless. x - tau is written as 1 + alpha + alpha / tau, which does not cancel.

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
    # Components that stand out at none of these noises are only summed, not looked at singly.
    signals = int(np.count_nonzero(energies > threshold * np.exp(log_noise.min())))
    signal_x = x[:, :signals]
    stands_out = signal_x > threshold
    excess = np.where(stands_out, signal_x, threshold) - (1 + alpha)
    tau = (excess + np.sqrt(excess**2 - 4 * alpha)) / 2
    signal = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
    return (
        len(energies) * log_noise
        + np.where(stands_out, signal, signal_x).sum(axis=1)
        + x[:, signals:].sum(axis=1)
    )
