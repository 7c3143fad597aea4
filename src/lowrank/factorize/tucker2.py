"""Tucker-2: a 1 x 1 convolution, a small core convolution, a 1 x 1 convolution."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, plain_layer, windowed
from lowrank.factorize.spectra import (
    ROUNDING,
    Spectrum,
    leading_eigenvectors,
    leading_left_vectors,
    spectrum_of,
    with_fixed_signs,
)
from lowrank.factorize.tensor_algebra import mode_dot, unfold
from lowrank.factorize.tucker1 import Tucker1

# Extrapolation of each sweep beyond the previous one, and number of multiplications of the previous
# vectors; see `_improved`.
_EXTENSION = 0.5
_MULTIPLICATIONS = 4


@dataclass(frozen=True)
class Tucker2(Factorization):
    """Tucker decomposition over the two channel modes (Kim et al. 2016, section 3.1).

    The kernel W(t, s, i, j) becomes the sum over r3, r4 of C(r4, r3, i, j) V(s, r3) U(t, r4), with
    orthonormal U and V. The start is the sequentially truncated higher-order SVD (Vannieuwenhoven
    et al. 2012), in float32. Higher-order orthogonal iteration (De Lathauwer et al. 2000) improves
    it in float64.

    Parameters
    ----------
    tolerance
        Stop when half a sweep, which is one mode, lowers the relative error by less than half this
        share.
    max_sweeps
        Stop after this many sweeps over the two modes.
    """

    tolerance: float = 5e-4
    max_sweeps: int = 10

    name: ClassVar[str] = "tucker2"
    rank_names: ClassVar[tuple[str, ...]] = ("input", "output")

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Reject 1 x 1 kernels, for which the core would be a useless third layer."""
        if layer.kernel == (1, 1):
            return "its kernel is 1 x 1, which has no window for a core; use svd"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (min(S, T D^2), min(T, S D^2))."""
        taps = prod(layer.kernel)
        return (
            min(layer.in_channels, layer.out_channels * taps),
            min(layer.out_channels, layer.in_channels * taps),
        )

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Limit R3 <= D^2 R4 and R4 <= D^2 R3, the largest ranks of the core's unfoldings."""
        input_rank, output_rank = ranks
        taps = prod(layer.kernel)
        return min(input_rank, taps * output_rank), min(output_rank, taps * input_rank)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings S x (T D^2) and T x (S D^2)."""
        return spectrum_of(unfold(kernel, 1)), spectrum_of(unfold(kernel, 0))

    def kept(self, kernel: np.ndarray) -> np.ndarray:
        """Return the squared norm that the truncated higher-order SVD keeps, for all ranks.

        See De Lathauwer et al. 2000. The iteration keeps slightly more. The core holds the entries
        of the kernel in orthonormal bases of both channel modes, so each of its corners gives the
        squared norm kept at the ranks of that corner.
        """
        full = self.full_ranks(plain_layer(kernel))
        inputs = leading_left_vectors(unfold(kernel, 1), full[0])
        outputs = leading_left_vectors(unfold(kernel, 0), full[1])
        core = mode_dot(mode_dot(kernel, outputs, 0, transpose=True), inputs, 1, transpose=True)
        # (R4, R3, D_h, D_w) -> (R3, R4), with the squared norm of each entry's window
        squares = np.square(unfold(core, 1).reshape(*full, -1)).sum(2)
        kept: np.ndarray = squares.cumsum(0).cumsum(1)
        return kept

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: 1 x 1 (S to R3), window (R3 to R4), 1 x 1 (R4 to T)."""
        input_rank, output_rank = ranks
        return (
            PlainLayer(layer.in_channels, input_rank),
            # Padding is applied in the core. This is correct because the 1 x 1 layer before has no
            # bias, so zeros stay zeros.
            windowed(layer, input_rank, output_rank),
            PlainLayer(output_rank, layer.out_channels, bias=layer.bias),
        )

    def tail(
        self, layer: PlainLayer, ranks: tuple[int, ...]
    ) -> tuple[Factorization, PlainLayer, tuple[int, ...]]:
        """Return core and output factor: the Tucker-1 decomposition of a kernel with R3 inputs."""
        input_rank, output_rank = ranks
        return Tucker1(), windowed(layer, input_rank, layer.out_channels), (output_rank,)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R3, S, 1, 1), (R4, R3, D_h, D_w) and (T, R4, 1, 1)."""
        input_vectors, output_vectors, core = self.approximation(kernel, ranks)
        return (
            input_vectors.T[:, :, None, None],
            core.reshape(*ranks[::-1], *kernel.shape[2:]),
            output_vectors[:, :, None, None],
        )

    def approximation(
        self,
        kernel: np.ndarray,
        ranks: tuple[int, ...],
        start: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return orthonormal V (S, R3) and U (T, R4), and the core (R4, R3 D^2).

        If `start` is the V and U of a similar kernel, the result after one sweep is never worse
        than they are.
        """
        unfoldings = unfold(kernel, 1), unfold(kernel, 0)
        norm_squared = float(np.vdot(kernel, kernel))
        error_squared = np.inf
        # For each mode: its vectors, and its Gram matrix from the previous sweep.
        vectors, grams = (
            (list(start), [None, None]) if start else _start(unfoldings, ranks, norm_squared)
        )
        for step in range(2 * self.max_sweeps):
            mode, other = step % 2, 1 - step % 2
            # (R, C) x (C, C' D^2) -> (R, C' D^2) -> (C', R D^2) for the C' channels of `mode`. This
            # is a mode product; `mode_dot` would copy the kernel into its unfolding at every step.
            reduced = _other_mode_first(
                vectors[other].T @ unfoldings[other], kernel.shape[1 - mode]
            )
            gram = reduced @ reduced.T  # (C', R D^2) x (R D^2, C') -> (C', C')
            vectors[mode] = _improved(vectors[mode], gram, grams[mode])
            grams[mode] = gram
            # U and V are orthonormal, so the part that they do not keep is the error.
            kept = float(np.vdot(vectors[mode], gram @ vectors[mode]))
            previous, error_squared = (
                error_squared,
                max(norm_squared - kept, ROUNDING * norm_squared),
            )
            # A step is half a sweep. To first order, the relative change of the squared error is
            # twice that of the error.
            if previous - error_squared <= self.tolerance * error_squared:
                break
        core = vectors[mode].T @ reduced  # (R, C') x (C', R' D^2) -> (R, R' D^2)
        if mode == 0:
            core = _other_mode_first(core, ranks[1])  # (R3, R4 D^2) -> (R4, R3 D^2)
        return vectors[0], vectors[1], core


def _other_mode_first(reduced: np.ndarray, channels: int) -> np.ndarray:
    """Reshape (R, C D^2) to (C, R D^2), for the C channels of the other mode."""
    # `unfold` does the same, but the kernels of a small network are so small that its call takes
    # longer than the copy: 20 % of a block-term decomposition.
    rank = reduced.shape[0]
    return reduced.reshape(rank, channels, -1).swapaxes(0, 1).reshape(channels, -1)


def _start(
    unfoldings: tuple[np.ndarray, np.ndarray], ranks: tuple[int, ...], norm_squared: float
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Return V and U of the sequentially truncated higher-order SVD, and the outputs' Gram matrix.

    Float32 is accurate enough for a start and halves the time of products and eigenproblems.
    """
    scale = 1 / np.sqrt(norm_squared) if norm_squared > 0 else 1.0
    by_input = np.empty(unfoldings[0].shape, np.float32)
    # At unit norm, squares neither overflow nor underflow.
    np.multiply(unfoldings[0], scale, out=by_input, casting="same_kind")
    # (S, T D^2) x (T D^2, S) -> (S, S)
    input_vectors = leading_eigenvectors(by_input @ by_input.T, ranks[0])
    # (R3, S) x (S, T D^2) -> (R3, T D^2) -> (T, R3 D^2)
    reduced = _other_mode_first(input_vectors.T @ by_input, len(unfoldings[1]))
    gram = reduced @ reduced.T  # (T, R3 D^2) x (R3 D^2, T) -> (T, T)
    output_vectors = leading_eigenvectors(gram, ranks[1])
    vectors = [matrix.astype(np.float64) for matrix in (input_vectors, output_vectors)]
    return vectors, [None, gram.astype(np.float64) / scale**2]


def _improved(vectors: np.ndarray, gram: np.ndarray, last_gram: np.ndarray | None) -> np.ndarray:
    """Return improved approximations of the leading eigenvectors of one mode's Gram matrix, (C, R).

    The plain iteration approaches its limit from one side and ever more slowly. Extrapolating by
    half the change of the Gram matrix since the previous sweep has the same limit and needs fewer
    sweeps. The vectors of the previous sweep are almost those of this one, so a few multiplications
    by the matrix (orthogonal iteration) replace the eigenproblem.
    """
    target = gram if last_gram is None else gram + _EXTENSION * (gram - last_gram)
    for _ in range(_MULTIPLICATIONS // 2):
        # Two multiplications at a time: after more, the columns would be too nearly parallel to
        # separate.
        vectors = np.linalg.qr(target @ (target @ vectors))[0]
    return with_fixed_signs(vectors)


ENTRIES = (Tucker2(),)
