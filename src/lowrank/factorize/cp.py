"""Base class of the CP decompositions: one layer for each mode, one channel for each term."""

from abc import abstractmethod
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.cp_terms import Terms, fiber_terms
from lowrank.factorize.factorization import Factorization, windowed


class Cp(Factorization):
    """The CP decomposition of the three-way tensor T x S x D^2; subclasses compute the terms.

    The kernel becomes the sum over r of a(t, r) b(s, r) c(i, j, r): a 1 x 1 convolution from S to
    R, a window on each of the R channels separately, and a 1 x 1 convolution from R to T (Astrid &
    Lee 2017). CP has no unfolding of its own, so rank rules that need spectra cannot be used with
    it.
    """

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    is_closed_form: ClassVar[bool] = False

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Reject 1 x 1 kernels, for which the SVD gives the best terms in closed form."""
        if layer.kernel == (1, 1):
            return "its kernel is 1 x 1, for which the CP decomposition is the SVD; use svd"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return the number of fibers: the product of T, S and D^2 without the largest of them."""
        sizes = (layer.out_channels, layer.in_channels, prod(layer.kernel))
        return (prod(sizes) // max(sizes),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: 1 x 1 (S to R), the window on each of R channels, 1 x 1 (R to T)."""
        (rank,) = ranks
        return (
            PlainLayer(layer.in_channels, rank),
            windowed(layer, rank, rank, groups=rank),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R, S, 1, 1), (R, 1, D_h, D_w) and (T, R, 1, 1).

        At full rank the terms are the fibers of the kernel, which is exact.
        """
        (rank,) = ranks
        outputs, inputs, *window = kernel.shape
        flat = kernel.reshape(outputs, inputs, -1, 1)
        is_full = rank == kernel.size // max(outputs, inputs, prod(window))
        terms = fiber_terms(flat) if is_full else self.terms(flat, rank)
        windows, first, last = terms.scaled(
            terms.heights * terms.widths, terms.inputs, terms.outputs
        )
        return (
            first.T[:, :, None, None],
            windows.T.reshape(rank, 1, *window),
            last[:, :, None, None],
        )

    @abstractmethod
    def terms(self, kernel: np.ndarray, rank: int) -> Terms:
        """Return `rank` terms for a kernel of shape (T, S, D_h, D_w); `rank` is below full rank."""
