"""Tucker-2: a 1 x 1 convolution, a small core convolution, a 1 x 1 convolution."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.factorize.base import Factorization
from lowrank.factorize.spectra import (
    Spectrum,
    leading_eigenvectors,
    leading_left_vectors,
    spectrum_of,
)
from lowrank.plan import PlainLayer

# How far each sweep is extended beyond the last one; see `_extended`.
_EXTENSION = 0.5

# Squared errors below this share of the squared norm are rounding.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Tucker2(Factorization):
    """Tucker decomposition over the two channel modes (Kim et al. 2016, section 3.1).

    The kernel W(t, s, i, j) becomes sum over r3, r4 of C(r4, r3, i, j) V(s, r3) U(t, r4), with
    orthonormal U and V. It starts from the higher-order SVD and improves by higher-order orthogonal
    iteration (De Lathauwer et al. 2000).

    Parameters
    ----------
    tolerance
        Stop when a sweep lowers the relative error by less than this share of it.
    max_sweeps
        Stop after this many sweeps over the two modes.
    """

    tolerance: float = 1e-3
    max_sweeps: int = 10

    name: ClassVar[str] = "tucker2"
    rank_names: ClassVar[tuple[str, ...]] = ("input", "output")

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Refuse 1 x 1 kernels, for which the core would be a wasted third layer."""
        if layer.kernel == (1, 1):
            return "its kernel is 1 x 1, which has no window for a core; take svd"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """(min(S, T D^2), min(T, S D^2))."""
        taps = prod(layer.kernel)
        return (
            min(layer.in_channels, layer.out_channels * taps),
            min(layer.out_channels, layer.in_channels * taps),
        )

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """R3 <= D^2 R4 and R4 <= D^2 R3: the core's unfoldings have no higher rank."""
        input_rank, output_rank = ranks
        taps = prod(layer.kernel)
        return min(input_rank, taps * output_rank), min(output_rank, taps * input_rank)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Of the unfoldings S x (T D^2) and T x (S D^2)."""
        return spectrum_of(_by_input(kernel)), spectrum_of(_by_output(kernel))

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """1 x 1 from S to R3; the window from R3 to R4; 1 x 1 from R4 to T."""
        input_rank, output_rank = ranks
        return (
            PlainLayer(layer.in_channels, input_rank),
            # Padding may wait for the core: the 1 x 1 before it has no bias, so zeros stay zeros.
            PlainLayer(
                input_rank,
                output_rank,
                kernel=layer.kernel,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
            ),
            PlainLayer(output_rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Kernels of shapes (R3, S, 1, 1), (R4, R3, D_h, D_w) and (T, R4, 1, 1)."""
        output_vectors, input_vectors, core = self._iterated(kernel, *ranks)
        return (
            input_vectors.T[:, :, None, None],
            core.transpose(1, 0, 2).reshape(*ranks[::-1], *kernel.shape[2:]),
            output_vectors[:, :, None, None],
        )

    def _iterated(
        self, kernel: np.ndarray, input_rank: int, output_rank: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U of shape (T, R4), V of shape (S, R3) and the core of shape (R3, R4, D^2)."""
        by_input, by_output = _by_input(kernel), _by_output(kernel)
        norm_squared = float(np.vdot(by_output, by_output))
        error_squared = np.inf
        output_gram = input_gram = None
        input_vectors = leading_left_vectors(by_input, input_rank)
        for _ in range(self.max_sweeps):
            # (R3, S) x (S, T D^2) -> (R3, T D^2) -> (T, R3 D^2)
            reduced = _other_mode_first(input_vectors.T @ by_input, kernel.shape[0])
            output_vectors, output_gram = _extended(reduced, output_rank, output_gram)
            # (R4, T) x (T, S D^2) -> (R4, S D^2) -> (S, R4 D^2)
            reduced = _other_mode_first(output_vectors.T @ by_output, kernel.shape[1])
            input_vectors, input_gram = _extended(reduced, input_rank, input_gram)
            # U and V are orthonormal: what the core does not hold, trace(V^T G V), is the error.
            held = float(np.vdot(input_vectors, input_gram @ input_vectors))
            previous = error_squared
            error_squared = max(norm_squared - held, _ROUNDING * norm_squared)
            # The squared error falls twice as fast as the error.
            if previous - error_squared <= 2 * self.tolerance * error_squared:
                break
        core = input_vectors.T @ reduced  # (R3, S) x (S, R4 D^2) -> (R3, R4 D^2)
        return output_vectors, input_vectors, core.reshape(input_rank, output_rank, -1)


def _by_input(kernel: np.ndarray) -> np.ndarray:
    """(T, S, D_h, D_w) -> (S, T D^2)."""
    return kernel.swapaxes(0, 1).reshape(kernel.shape[1], -1)


def _by_output(kernel: np.ndarray) -> np.ndarray:
    """(T, S, D_h, D_w) -> (T, S D^2)."""
    return kernel.reshape(kernel.shape[0], -1)


def _other_mode_first(reduced: np.ndarray, channels: int) -> np.ndarray:
    """(R, C D^2) -> (C, R D^2), for C channels of the other mode."""
    rank = reduced.shape[0]
    return reduced.reshape(rank, channels, -1).swapaxes(0, 1).reshape(channels, -1)


def _extended(
    reduced: np.ndarray, rank: int, last_gram: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Leading left vectors of one mode, (C, rank), and the Gram matrix to hand to the next sweep.

    The plain iteration approaches its limit ever more slowly, from one side. Going half as far
    again as the Gram matrix moved since the last sweep has the same limit and needs fewer sweeps.
    """
    gram = reduced @ reduced.T  # (C, R D^2) x (R D^2, C) -> (C, C)
    target = gram if last_gram is None else gram + _EXTENSION * (gram - last_gram)
    return leading_eigenvectors(target, rank), gram
