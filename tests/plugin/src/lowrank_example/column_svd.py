"""A factorization: a window along the width, then one along the height."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, along_axis
from lowrank.factorize.spectra import Spectrum, spectrum_of, truncated_svd


class ColumnSvd(Factorization):
    """Separable windows, as in spatial SVD, but along the width first."""

    name: ClassVar[str] = "column_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        height, width = layer.kernel
        return (min(layer.in_channels * width, layer.out_channels * height),)

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        return (spectrum_of(_matrix(kernel)),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        (rank,) = ranks
        vertical = along_axis(layer, 0, rank, layer.out_channels)
        return along_axis(layer, 1, layer.in_channels, rank), replace(vertical, bias=layer.bias)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        (rank,) = ranks
        outputs, inputs, height, width = kernel.shape
        left, right = truncated_svd(_matrix(kernel), rank)
        # (S D_w, R) -> (R, S, 1, D_w) and (R, T D_h) -> (T, R, D_h, 1)
        return (
            left.T.reshape(rank, inputs, 1, width),
            right.reshape(rank, outputs, height, 1).swapaxes(0, 1),
        )


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """Return the kernel (T, S, D_h, D_w) as a matrix (S D_w, T D_h)."""
    outputs, inputs, height, width = kernel.shape
    return kernel.transpose(1, 3, 0, 2).reshape(inputs * width, outputs * height)
