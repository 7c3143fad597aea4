"""Spatial SVD: a window along the height, followed by one along the width."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, along_axis
from lowrank.factorize.spectra import Spectrum, spectrum_of, truncated_svd
from lowrank.factorize.tensor_algebra import matricize


class SpatialSvd(Factorization):
    """Separable windows with full channel depth (Jaderberg et al. 2014, scheme 2), in closed form.

    The kernel W(t, s, i, j) becomes the sum over r of H(t, j, r) V(s, i, r). This is the truncated
    SVD of the matrix (S D_h) x (T D_w) (Tai et al. 2016).
    """

    name: ClassVar[str] = "spatial_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (min(S D_h, T D_w),)."""
        height, width = layer.kernel
        return (min(layer.in_channels * height, layer.out_channels * width),)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matrix (S D_h) x (T D_w)."""
        return (spectrum_of(_matrix(kernel)),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: D_h x 1 (S to R), 1 x D_w (R to T).

        Each layer has the stride, padding and dilation along its axis.
        """
        (rank,) = ranks
        horizontal = along_axis(layer, 1, rank, layer.out_channels)
        return along_axis(layer, 0, layer.in_channels, rank), replace(horizontal, bias=layer.bias)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R, S, D_h, 1) and (T, R, 1, D_w)."""
        (rank,) = ranks
        outputs, inputs, height, width = kernel.shape
        left, right = truncated_svd(_matrix(kernel), rank)
        # (S D_h, R) -> (R, S, D_h, 1) and (R, T D_w) -> (T, R, 1, D_w)
        return (
            left.T.reshape(rank, inputs, height, 1),
            right.reshape(rank, outputs, 1, width).swapaxes(0, 1),
        )


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """Return the kernel (T, S, D_h, D_w) as a matrix (S D_h, T D_w)."""
    return matricize(kernel, (1, 2), (0, 3))


ENTRIES = (SpatialSvd(),)
