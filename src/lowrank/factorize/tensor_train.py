"""Tensor train: 1 x 1, a window along the height, a window along the width, 1 x 1."""

from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, along_axis, windowed
from lowrank.factorize.spectra import Spectrum, leading_left_vectors, spectrum_of, truncated_svd
from lowrank.factorize.svd import Svd
from lowrank.factorize.tensor_algebra import matricize


class TensorTrain(Factorization):
    """The tensor train of the kernel as a tensor S x D_h x D_w x T (Oseledets 2011, TT-SVD).

    The kernel W(t, s, i, j) becomes the sum over r1, r2, r3 of G1(s, r1) G2(r1, i, r2) G3(r2, j,
    r3) G4(r3, t). G1 and G2 are orthonormal. The squared error is at most the sum of the squared
    errors of the three unfoldings at those ranks.
    """

    name: ClassVar[str] = "tensor_train"
    rank_names: ClassVar[tuple[str, ...]] = ("input", "window", "output")

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Reject kernels with one row or one column, for which one layer would have no window."""
        if 1 in layer.kernel:
            height, width = layer.kernel
            return f"its kernel is {height} x {width}; expected a window along both axes"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (min(S, D_h D_w T), min(S D_h, D_w T), min(S D_h D_w, T))."""
        height, width = layer.kernel
        inputs, outputs = layer.in_channels, layer.out_channels
        return (
            min(inputs, height * width * outputs),
            min(inputs * height, width * outputs),
            min(inputs * height * width, outputs),
        )

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Limit the ranks to R1 <= D_h R2, R2 <= min(D_h R1, D_w R3) and R3 <= D_w R2.

        No core has higher ranks.
        """
        height, width = layer.kernel
        first, second, third = ranks
        second = min(second, height * first, width * third)
        return min(first, height * second), second, min(third, width * second)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectra of S x (D_h D_w T), (S D_h) x (D_w T) and (S D_h D_w) x T."""
        return tuple(spectrum_of(_unfolding(kernel, modes)) for modes in (1, 2, 3))

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: 1 x 1 (S to R1), D_h x 1 (to R2), 1 x D_w (to R3), 1 x 1 (R3 to T)."""
        first, second, third = ranks
        return (
            PlainLayer(layer.in_channels, first),
            # Padding is applied here. This is correct because the 1 x 1 layer before has no bias,
            # so zeros stay zeros.
            along_axis(layer, 0, first, second),
            along_axis(layer, 1, second, third),
            PlainLayer(third, layer.out_channels, bias=layer.bias),
        )

    def tail(
        self, layer: PlainLayer, ranks: tuple[int, ...]
    ) -> tuple[Factorization, PlainLayer, tuple[int, ...]]:
        """Return the other three layers: the remaining cores, for a kernel with R1 inputs."""
        first, *others = ranks
        return _Rows(), windowed(layer, first, layer.out_channels), tuple(others)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the kernels: (R1, S, 1, 1), (R2, R1, D_h, 1), (R3, R2, 1, D_w), (T, R3, 1, 1)."""
        first, *others = ranks
        matrix = _unfolding(kernel, 1)
        vectors = leading_left_vectors(matrix, first)
        # (R1, S) x (S, D_h D_w T) -> (R1, D_h, D_w, T) -> (T, R1, D_h, D_w)
        _, _, height, width = kernel.shape
        rest = (vectors.T @ matrix).reshape(first, height, width, -1)
        rest = np.ascontiguousarray(np.moveaxis(rest, -1, 0))
        return vectors.T[:, :, None, None], *_Rows().factors(rest, tuple(others))


class _Rows(Factorization):
    """A tensor train without its first core: D_h x 1, 1 x D_w, 1 x 1."""

    name: ClassVar[str] = "tensor_train_rows"
    rank_names: ClassVar[tuple[str, ...]] = ("window", "output")

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (min(S D_h, D_w T), min(S D_h D_w, T))."""
        return TensorTrain().full_ranks(layer)[1:]

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: D_h x 1 (S to R2), 1 x D_w (R2 to R3), 1 x 1 (R3 to T)."""
        second, third = ranks
        return (
            along_axis(layer, 0, layer.in_channels, second),
            along_axis(layer, 1, second, third),
            PlainLayer(third, layer.out_channels, bias=layer.bias),
        )

    def tail(
        self, layer: PlainLayer, ranks: tuple[int, ...]
    ) -> tuple[Factorization, PlainLayer, tuple[int, ...]]:
        """Return the last two layers: the SVD of a 1 x D_w kernel with R2 inputs."""
        second, third = ranks
        return Svd(), along_axis(layer, 1, second, layer.out_channels), (third,)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R2, S, D_h, 1), (R3, R2, 1, D_w) and (T, R3, 1, 1)."""
        second, third = ranks
        outputs, inputs, height, width = kernel.shape
        matrix = _unfolding(kernel, 2)  # (S D_h, D_w T)
        vectors = _widened(leading_left_vectors(matrix, min(second, len(matrix))), second)
        # (R2, S D_h) x (S D_h, D_w T) -> (R2 D_w, T)
        rest = (vectors.T @ matrix).reshape(second * width, outputs)
        columns, last = truncated_svd(rest, min(third, *rest.shape))
        columns, last = _widened(columns, third), _widened(last.T, third).T
        return (
            vectors.T.reshape(second, inputs, height, 1),
            # (R2 D_w, R3) -> (R3, R2, 1, D_w)
            columns.T.reshape(third, second, 1, width),
            np.ascontiguousarray(last.T)[:, :, None, None],
        )


def _widened(matrix: np.ndarray, columns: int) -> np.ndarray:
    """Append columns of zeros to a matrix, for ranks above the limits of `consistent`."""
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def _unfolding(kernel: np.ndarray, modes: int) -> np.ndarray:
    """Return the unfolding of S x D_h x D_w x T whose rows are the first `modes` modes."""
    order = (1, 2, 3, 0)
    return matricize(kernel, order[:modes], order[modes:])


ENTRIES = (TensorTrain(),)
