"""Branch removal: the outputs of a layer become their mean, and nothing reads the branch before."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from lowrank.core.layers import Layer, PlainLayer
from lowrank.factorize.factorization import Factorization

_REMOVED, _KEPT = 1, 2


class RemoveBranch(Factorization):
    """Removal of the branch of a residual block.

    The output of the branch's last layer is replaced by its mean over images and positions, which
    is added to the bias. All layers of the branch disappear from the exported file. A block whose
    branch is removed passes its input on. Trained residual networks lose little without single
    blocks (Veit et al. 2016, "Residual networks behave like ensembles of relatively shallow
    networks").

    The rank is 1 for a removed branch; at the full rank, 2, the layer stays as it is.
    """

    name: ClassVar[str] = "remove_branch"
    rank_names: ClassVar[tuple[str, ...]] = ("branch",)
    layer_kinds: ClassVar[tuple[str, ...]] = ("window", "matrix")
    ranks_are_widths: ClassVar[bool] = False

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Return why the layer does not end a branch that can be removed, or None."""
        if isinstance(layer, Layer) and not layer.is_added:
            return "remove_branch: its output is not only added to another map"
        return None

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (2,)."""
        return (_KEPT,)

    def kept(self, kernel: np.ndarray) -> np.ndarray:
        """Return (0, the squared norm of the kernel)."""
        return np.array([0.0, np.square(kernel, dtype=np.float64).sum()])

    def kept_of_outputs(self, kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Return (0, the squared norm of the outputs around their mean)."""
        outputs, channels = kernel.shape[:2]
        flat = kernel.reshape(outputs, -1).astype(np.float64)
        if len(covariance) == channels:
            flat = np.moveaxis(kernel, 1, -1).reshape(-1, channels).astype(np.float64)
        return np.array([0.0, np.vdot(flat @ covariance, flat)])

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return one layer: constant, or the layer itself."""
        return (replace(layer, constant=ranks == (_REMOVED,)),)

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the kernel, or zeros."""
        return (kernel if ranks == (_KEPT,) else np.zeros_like(kernel),)

    def factors_for_outputs(
        self, kernel: np.ndarray, ranks: tuple[int, ...], covariance: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the same as `factors`."""
        return self.factors(kernel.astype(np.float64), ranks)


ENTRIES = (RemoveBranch(),)
