"""Four-way CP: 1 x 1, then D_h x 1 and 1 x D_w on each channel separately, then 1 x 1."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.cp_als import CpAls
from lowrank.factorize.cp_terms import fiber_terms
from lowrank.factorize.factorization import along_axis


@dataclass(frozen=True)
class Cp4(CpAls):
    """CP of the four-way tensor T x S x D_h x D_w (Lebedev et al. 2015), by bounded least squares.

    The kernel becomes the sum over r of a(t, r) b(s, r) h(i, r) w(j, r). A window with one row or
    one column cannot be split; such kernels use the three-way form.
    """

    name: ClassVar[str] = "cp4"

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return the number of fibers: the product of T, S, D_h and D_w without the largest."""
        sizes = (layer.out_channels, layer.in_channels, *layer.kernel)
        return (prod(sizes) // max(sizes),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: 1 x 1 (S to R), D_h x 1 and 1 x D_w on each channel, 1 x 1 to T."""
        if 1 in layer.kernel:
            return super().sequence(layer, ranks)
        (rank,) = ranks
        return (
            PlainLayer(layer.in_channels, rank),
            along_axis(layer, 0, rank, rank, groups=rank),
            along_axis(layer, 1, rank, rank, groups=rank),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R, S, 1, 1), (R, 1, D_h, 1), (R, 1, 1, D_w), (T, R, 1, 1)."""
        if 1 in kernel.shape[2:]:
            return super().factors(kernel, ranks)
        (rank,) = ranks
        is_full = rank == kernel.size // max(kernel.shape)
        terms = fiber_terms(kernel) if is_full else self.terms(kernel, rank)
        heights, widths, first, last = terms.scaled(
            terms.heights, terms.widths, terms.inputs, terms.outputs
        )
        return (
            first.T[:, :, None, None],
            heights.T[:, None, :, None],
            widths.T[:, None, None, :],
            last[:, :, None, None],
        )


ENTRIES = (Cp4(),)
