"""Tucker-1: a convolution with fewer output channels, then a 1 x 1 convolution."""

from typing import ClassVar

import numpy as np

from lowrank.factorize.spectra import leading_left_vectors
from lowrank.factorize.svd import Svd
from lowrank.factorize.tensor_algebra import mode_dot, unfold


class Tucker1(Svd):
    """Tucker decomposition over the output channels only (Kim et al. 2016, section 3.1).

    It suits the first convolution, whose three input channels cannot be reduced. The kernel becomes
    the sum over r of C(r, s, i, j) U(t, r). This is the SVD with an orthonormal U and the complete
    scale in the core.
    """

    name: ClassVar[str] = "tucker1"
    rank_names: ClassVar[tuple[str, ...]] = ("output",)
    layer_kinds: ClassVar[tuple[str, ...]] = ("window",)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R4, S, D_h, D_w) and (T, R4, 1, 1)."""
        (rank,) = ranks
        output_vectors = leading_left_vectors(unfold(kernel, 0), rank)
        core = mode_dot(kernel, output_vectors, 0, transpose=True)
        return core, output_vectors[:, :, None, None]


ENTRIES = (Tucker1(),)
