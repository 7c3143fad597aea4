"""What the forms of the CP decomposition share: a layer for each mode, a channel for each term."""

from abc import abstractmethod
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.cp_terms import Terms, fibre_terms
from lowrank.factorize.factorization import Factorization, windowed


class Cp(Factorization):
    """The CP decomposition of the three-way tensor T x S x D^2, however its terms are found.

    The kernel becomes sum over r of a(t, r) b(s, r) c(i, j, r): a 1 x 1 convolution from S to R, a
    window for each of R channels alone, a 1 x 1 convolution from R to T (Astrid & Lee 2017). It has
    no unfolding of its own, so rules that ask for spectra do not go with it.
    """

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    is_closed_form: ClassVar[bool] = False

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Refuse 1 x 1 kernels, whose best terms are known in closed form: the SVD."""
        if layer.kernel == (1, 1):
            return "its kernel is 1 x 1, for which the CP decomposition is the SVD; take svd"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """The number of fibres: the product of T, S and D^2 without the largest."""
        sizes = (layer.out_channels, layer.in_channels, prod(layer.kernel))
        return (prod(sizes) // max(sizes),)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """1 x 1 from S to R; the window on each of R channels; 1 x 1 from R to T."""
        (rank,) = ranks
        return (
            PlainLayer(layer.in_channels, rank),
            windowed(layer, rank, rank, groups=rank),
            PlainLayer(rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Kernels of shapes (R, S, 1, 1), (R, 1, D_h, D_w) and (T, R, 1, 1).

        At the full rank the kernel's fibres are the terms, which is exact.
        """
        (rank,) = ranks
        outputs, inputs, *window = kernel.shape
        flat = kernel.reshape(outputs, inputs, -1, 1)
        is_full = rank == kernel.size // max(outputs, inputs, prod(window))
        terms = fibre_terms(flat) if is_full else self.terms(flat, rank)
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
        """That many terms, fewer than the full rank, for a kernel of shape (T, S, D_h, D_w)."""
