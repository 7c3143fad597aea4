"""Sums of rank-one terms: power method, bounded alternating least squares, exact fibers.

A term is norm x a(t) b(s) h(i) w(j) with vectors of unit length. A window that is not separable has
the shape (D_h D_w, 1): then h holds the complete window, w is a sign, and the sum is the three-way
CP decomposition of a T x S x D^2 tensor. Thus each function handles both the three-way and the
four-way form.
"""

from dataclasses import dataclass

import numpy as np

from lowrank.factorize.spectra import ROUNDING
from lowrank.factorize.tensor_algebra import unfold

# Number of candidates that the power method improves in parallel. Candidates that remain after one
# term are good starting points for the next.
_CANDIDATES = 16

# Number of sweeps for all candidates before the first term, and before each later term.
_FIRST_SWEEPS = 10
_SWEEPS = 4

# Relative accuracy of the bound on the norms. Newton's method needs only a few steps.
_BOUND_ACCURACY = 1e-9
_NEWTON_STEPS = 50

# Eigenvalues of a Gram matrix below this share of the largest are rounding errors.
_SMALLEST_EIGENVALUE = 1e-13


@dataclass(frozen=True)
class Terms:
    """R rank-one terms.

    Parameters
    ----------
    norms
        Shape (R,), not negative.
    outputs, inputs, heights, widths
        Shapes (T, R), (S, R), (D_h, R), (D_w, R). Columns have unit length, even if the norm is 0.
    """

    norms: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def scaled(self, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
        """Distribute the norms evenly over factors with unit columns, so that all train alike.

        A term with norm 0 is 0 in the first factor only: if two factors were 0, neither would
        train.
        """
        first, *rest = columns
        is_positive = self.norms > 0
        root = np.where(is_positive, self.norms, 1.0) ** (1 / len(columns))
        return first * (root * is_positive), *(factor * root for factor in rest)


def power_terms(
    kernel: np.ndarray, rank: int, *, tolerance: float = 5e-4, max_sweeps: int = 100
) -> Terms:
    """Return the terms that the tensor power method with deflation finds one by one.

    Each term is the best that power iteration over the modes finds for the residual of the previous
    terms (Anandkumar et al. 2014, "Tensor decompositions for learning latent variable models";
    Astrid & Lee 2017). Each term lowers the squared error by its squared norm. So the error falls
    with every term, and the terms at a lower rank are the first terms at a higher rank.

    The method of those papers optimizes one mode at a time. Here, a and the window are optimal for
    a given b, then b and the window for that a. The leading eigenvector of the window's small Gram
    matrix costs almost nothing. Candidates start from random directions with a fixed seed.

    Parameters
    ----------
    kernel
        Shape (T, S, D_h, D_w), float64.
    rank
        Number of terms.
    tolerance
        A term is complete when a sweep raises its squared norm by less than this share.
    max_sweeps
        A term is complete after this many sweeps at the latest.
    """
    residual = _by_tap(kernel)
    generator = np.random.default_rng(0)
    candidates = _random_columns(generator, kernel.shape, _CANDIDATES)
    norms = np.zeros(rank)
    factors = [np.zeros((size, rank)) for size in kernel.shape]
    for term in range(rank):
        for _ in range(_SWEEPS if term else _FIRST_SWEEPS):
            candidate_norms = _power_sweep(residual, candidates)
        best = [int(candidate_norms.argmax())]
        columns = [candidate[:, best] for candidate in candidates]
        for _ in range(max_sweeps):
            previous, norms[term] = norms[term], _power_sweep(residual, columns)[0]
            if norms[term] ** 2 - previous**2 <= tolerance * norms[term] ** 2:
                break
        _subtract(residual, norms[term], columns)
        new_columns = _random_columns(generator, kernel.shape, 1)
        for factor, column in zip(factors, columns, strict=True):
            factor[:, [term]] = column
        for candidate, column in zip(candidates, new_columns, strict=True):
            candidate[:, best] = column
    return Terms(norms, *factors)


def fiber_terms(kernel: np.ndarray) -> Terms:
    """Return the fibers of the kernel along its longest mode; at full rank, this is exact.

    Parameters
    ----------
    kernel
        Shape (T, S, D_h, D_w). The number of terms is the product of all sizes except the largest.
    """
    longest = int(np.argmax(kernel.shape))
    others = [size for mode, size in enumerate(kernel.shape) if mode != longest]
    fibers = unfold(kernel, longest)  # (C, product of the other modes), for C entries in a fiber
    norms, directions = _unit_columns(fibers, np.eye(len(fibers), 1))
    factors = [
        np.eye(size)[:, index]
        for size, index in zip(others, np.indices(others).reshape(3, -1), strict=True)
    ]
    factors.insert(longest, directions)
    return Terms(norms, *factors)


def least_squares_terms(
    kernel: np.ndarray, start: Terms, *, bound: float, tolerance: float, max_sweeps: int
) -> Terms:
    """Improve terms by alternating least squares with a bound on the sum of their squared norms.

    Without a bound, if the kernel has no best approximation of that rank, the terms may grow
    without limit while they cancel each other (de Silva & Lim 2008). Phan et al. 2020, "Stable
    low-rank tensor decomposition for compression of convolutional neural network", measure this by
    the sum of the terms' squared norms. Here this sum may not exceed `bound` times the kernel's
    squared norm. Since the other factors have unit columns, the sum is the squared norm of the
    factor that is being updated. So each step is a least-squares problem in a ball. It is solved
    exactly, and cannot raise the error if the start is in that ball.

    Parameters
    ----------
    kernel
        Shape (T, S, D_h, D_w), float64.
    start
        Terms to improve.
    bound
        Largest sum of squared norms, as a multiple of the kernel's; infinity for no bound.
    tolerance
        Stop when a sweep lowers the relative error by less than this share.
    max_sweeps
        Stop after this many sweeps over the modes.
    """
    taps = _by_tap(kernel)
    norm_squared = float(np.vdot(kernel, kernel))
    limit = bound * norm_squared
    norms, factors = start.norms, [start.outputs, start.inputs, start.heights, start.widths]
    window_modes = [mode for mode in (2, 3) if kernel.shape[mode] > 1]
    error_squared = np.inf
    for _ in range(max_sweeps):
        for mode in (0, 1):
            # The steps of a sweep share this product, (D^2, C, C') x (C', R) -> (D^2, C, R) for the
            # C channels of `mode`. Calls of TensorLy's `unfolding_dot_khatri_rao` take 3 to 7
            # times as long (benchmarks/tensorly_functions.py).
            projected = _facing(taps, mode) @ factors[1 - mode]
            # (D^2, C, R) x (D^2, R) -> (C, R)
            target = np.einsum("kcr,kr->cr", projected, _windows(*factors[2:]))
            norms, _ = _bounded_step(factors, mode, target, limit)
            # (D^2, C, R) x (C, R) -> (D^2, R)
            of_taps = np.einsum("kcr,cr->kr", projected, factors[mode])
            of_taps = of_taps.reshape(*kernel.shape[2:], -1)
            for window_mode in window_modes:
                # (D_h, D_w, R) x (D_w, R) -> (D_h, R), or x (D_h, R) -> (D_w, R)
                contraction = "hwr,wr->hr" if window_mode == 2 else "hwr,hr->wr"
                target = np.einsum(contraction, of_taps, factors[5 - window_mode])
                norms, gain = _bounded_step(factors, window_mode, target, limit)
        previous = error_squared
        error_squared = max(norm_squared - gain, ROUNDING * norm_squared)
        # To first order, the relative change of the squared error is twice that of the error.
        if previous - error_squared <= 2 * tolerance * error_squared:
            break
    return Terms(norms, *factors)


def _bounded_step(
    factors: list[np.ndarray], mode: int, target: np.ndarray, limit: float
) -> tuple[np.ndarray, float]:
    """Replace one factor by the best factor whose squared norm is at most `limit`.

    Let M = `target`, (C, R), be the kernel's unfolding times the Khatri-Rao product of the other
    factors, and G, (R, R), their Gram matrix. The best factor is F = M (G + z I)^-1 with the
    smallest z >= 0 that respects the bound. The norms of F's columns become the norms of the terms.

    Returns
    -------
    tuple of np.ndarray and float
        The norms, (R,), and the difference between the squared error of 0 and that of the terms.
    """
    gram = np.ones((target.shape[1],) * 2)
    for other, factor in enumerate(factors):
        if other != mode:
            gram *= factor.T @ factor  # (R, C) x (C, R) -> (R, R)
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues, _SMALLEST_EIGENVALUE * eigenvalues[-1])
    rotated = target @ vectors  # (C, R) x (R, R) -> (C, R)
    shifted = eigenvalues + _shift(eigenvalues, np.sum(rotated**2, axis=0), limit)
    solution = (rotated / shifted) @ vectors.T  # (C, R) x (R, R) -> (C, R)
    # 2 <M, F> - <F G, F>, in the eigenvectors of G
    gain = float(np.sum(rotated**2 / shifted * (2 - eigenvalues / shifted)))
    norms, factors[mode] = _unit_columns(solution, factors[mode])
    return norms, gain


def _shift(eigenvalues: np.ndarray, energies: np.ndarray, limit: float) -> float:
    """Return the smallest z >= 0 with sum of energies / (eigenvalues + z)^2 <= limit.

    This is Newton's method on 1 / sqrt of that sum, a concave and nearly straight function. From 0,
    it reaches the root in a few steps and never passes it (More & Sorensen 1983).
    """
    shift = 0.0
    for _ in range(_NEWTON_STEPS):
        shifted = eigenvalues + shift
        norm_squared = float(np.sum(energies / shifted**2))
        if norm_squared <= limit * (1 + _BOUND_ACCURACY):
            break
        excess = np.sqrt(norm_squared / limit) - 1
        shift += excess * norm_squared / float(np.sum(energies / shifted**3))
    return shift


def _power_sweep(residual: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """Improve P candidates (a, b, h, w), shapes (C, P) each, in place; return their norms, (P,)."""
    window_shape = [len(column) for column in columns[2:]]
    for mode in (0, 1):
        # (D^2, C, C') x (C', P) -> (D^2, C, P) for the C channels of `mode`
        projected = _facing(residual, mode) @ columns[1 - mode]
        by_candidate = projected.transpose(2, 0, 1)
        # (P, D^2, C) x (P, C, D^2) -> (P, D^2, D^2)
        gram = by_candidate @ by_candidate.swapaxes(1, 2)
        gram = gram.reshape(-1, *window_shape, *window_shape)
        # Contracted with the other vector of the window on both sides: (P, D, D).
        of_heights = np.einsum("phwij,wp,jp->phi", gram, columns[3], columns[3])
        columns[2] = _leading_vectors(of_heights)
        of_widths = np.einsum("phwij,hp,ip->pwj", gram, columns[2], columns[2])
        columns[3] = _leading_vectors(of_widths)
        # (D^2, C, P) x (D^2, P) -> (C, P)
        combined = np.einsum("kcp,kp->cp", projected, _windows(*columns[2:]))
        norms, columns[mode] = _unit_columns(combined, columns[mode])
    return norms


def _subtract(residual: np.ndarray, norm: float, columns: list[np.ndarray]) -> None:
    outputs, inputs, *window = columns
    # One tap at a time, to avoid a second array of the kernel's size.
    for tap, weight in zip(residual, _windows(*window), strict=True):
        tap -= (norm * weight * outputs) @ inputs.T  # (T, 1) x (1, S) -> (T, S)


def _random_columns(
    generator: np.random.Generator, sizes: tuple[int, ...], count: int
) -> list[np.ndarray]:
    columns = [generator.standard_normal((size, count)) for size in sizes]
    return [column / np.linalg.norm(column, axis=0) for column in columns]


def _leading_vectors(symmetric: np.ndarray) -> np.ndarray:
    """Return the leading eigenvector of each of P matrices: (P, D, D) -> (D, P)."""
    return np.linalg.eigh(symmetric)[1][:, :, -1].T


def _unit_columns(matrix: np.ndarray, former: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the norms of the columns, and unit columns; zero columns get their former values."""
    norms = np.linalg.norm(matrix, axis=0)
    return norms, np.where(norms > 0, matrix / np.where(norms > 0, norms, 1.0), former)


def _by_tap(kernel: np.ndarray) -> np.ndarray:
    """Copy (T, S, D_h, D_w) to (D_h D_w, T, S)."""
    return kernel.reshape(*kernel.shape[:2], -1).transpose(2, 0, 1).copy()


def _facing(taps: np.ndarray, mode: int) -> np.ndarray:
    """Return (D^2, T, S) with the channels of the mode on axis 1."""
    return taps if mode == 0 else taps.swapaxes(1, 2)


def _windows(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Combine (D_h, R) and (D_w, R) to (D_h D_w, R), the complete window of each term.

    This is the Khatri-Rao product. TensorLy's `khatri_rao` takes 3 to 5 times as long for matrices
    of this size (benchmarks/tensorly_functions.py), in the innermost loop of the power method.
    """
    windows: np.ndarray = (heights[:, None] * widths[None]).reshape(-1, heights.shape[1])
    return windows
