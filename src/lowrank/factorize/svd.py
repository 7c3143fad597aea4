"""Singular value decomposition: two linear layers, or two 1 x 1 convolutions."""

from typing import ClassVar

import numpy as np

from lowrank.factorize.base import Factorization
from lowrank.factorize.spectra import Spectrum, leading_left_vectors, spectrum_of
from lowrank.plan import PlainLayer


class Svd(Factorization):
    """The truncated SVD of a linear layer or a 1 x 1 convolution (Eckart & Young 1936)."""

    name: ClassVar[str] = "svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Refuse kernels with a window."""
        if layer.kernel != (1, 1):
            height, width = layer.kernel
            return f"its kernel is {height} x {width} and svd takes 1 x 1; take tucker1 or tucker2"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """min(S, T)."""
        return (min(layer.in_channels, layer.out_channels),)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Of the matrix T x S."""
        return (spectrum_of(kernel[:, :, 0, 0]),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """S to R, with the stride: fewer positions are left for the second; then R to T."""
        (rank,) = ranks
        return (
            PlainLayer(layer.in_channels, rank, stride=layer.stride, padding=layer.padding),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Kernels of shapes (R, S, 1, 1) and (T, R, 1, 1).

        The projection U (U^T W) has the accuracy of U's orthonormality, where a division by small
        singular values would lose it. Each factor takes the square root of every singular value,
        so that fine-tuning moves both at the same pace.
        """
        (rank,) = ranks
        matrix = kernel[:, :, 0, 0]
        left = leading_left_vectors(matrix, rank)
        right = left.T @ matrix  # (R, T) x (T, S) -> (R, S)
        singular_values = np.linalg.norm(right, axis=1)
        # A null direction keeps its unit vector on the left: two zeros would never train.
        root = np.sqrt(np.where(singular_values > 0, singular_values, 1.0))
        return (right / root[:, None])[:, :, None, None], (left * root)[:, :, None, None]
