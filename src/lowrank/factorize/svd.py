"""Singular value decomposition: the window with fewer output channels, then a 1 x 1 convolution."""

from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, windowed
from lowrank.factorize.spectra import Spectrum, spectrum_of, truncated_svd
from lowrank.factorize.tensor_algebra import unfold


class Svd(Factorization):
    """The truncated SVD of the matrix T x (S D^2), the best one of its rank (Eckart & Young 1936).

    For a linear layer or a 1 x 1 convolution, this is the matrix of the layer.
    """

    name: ClassVar[str] = "svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    layer_kinds: ClassVar[tuple[str, ...]] = ("window", "matrix")

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (min(T, S D^2),)."""
        return (min(layer.out_channels, layer.in_channels * prod(layer.kernel)),)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matrix T x (S D^2)."""
        return (spectrum_of(unfold(kernel, 0)),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: the window (S to R), then 1 x 1 (R to T).

        The window has the stride, so the 1 x 1 convolution runs at fewer positions.
        """
        (rank,) = ranks
        return (
            windowed(layer, layer.in_channels, rank),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R, S, D_h, D_w) and (T, R, 1, 1)."""
        (rank,) = ranks
        left, right = truncated_svd(unfold(kernel, 0), rank)
        return right.reshape(rank, *kernel.shape[1:]), left[:, :, None, None]


class ChannelSvd(Svd):
    """The SVD under its name for windows: D x D to R, 1 x 1 to T (Zhang et al. 2016)."""

    name: ClassVar[str] = "channel_svd"
    layer_kinds: ClassVar[tuple[str, ...]] = ("window",)


ENTRIES = (Svd(), ChannelSvd())
