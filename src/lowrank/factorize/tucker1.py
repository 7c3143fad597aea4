"""Tucker-1: a convolution with fewer output channels, then a 1 x 1 convolution."""

from math import prod
from typing import ClassVar

import numpy as np

from lowrank.factorize.base import Factorization
from lowrank.factorize.spectra import Spectrum, leading_left_vectors, spectrum_of
from lowrank.plan import PlainLayer


class Tucker1(Factorization):
    """Tucker decomposition over the output channels alone (Kim et al. 2016, section 3.1).

    For a first convolution, whose three input channels have nothing to spare. The kernel becomes
    sum over r of C(r, s, i, j) U(t, r) with orthonormal U: the best approximation of that rank.
    """

    name: ClassVar[str] = "tucker1"
    rank_names: ClassVar[tuple[str, ...]] = ("output",)

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """min(T, S D^2)."""
        return (min(layer.out_channels, layer.in_channels * prod(layer.kernel)),)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Of the unfolding T x (S D^2)."""
        return (spectrum_of(kernel.reshape(kernel.shape[0], -1)),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """The window from S to R4; 1 x 1 from R4 to T."""
        (rank,) = ranks
        return (
            PlainLayer(
                layer.in_channels,
                rank,
                kernel=layer.kernel,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
            ),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Kernels of shapes (R4, S, D_h, D_w) and (T, R4, 1, 1)."""
        (rank,) = ranks
        unfolding = kernel.reshape(kernel.shape[0], -1)  # (T, S D^2)
        output_vectors = leading_left_vectors(unfolding, rank)
        core = output_vectors.T @ unfolding  # (R4, T) x (T, S D^2) -> (R4, S D^2)
        return core.reshape(rank, *kernel.shape[1:]), output_vectors[:, :, None, None]
