"""CP by alternating least squares: 1 x 1, a window on each channel separately, 1 x 1."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.factorize.cp import Cp
from lowrank.factorize.cp_terms import Terms, least_squares_terms, power_terms


@dataclass(frozen=True)
class CpAls(Cp):
    """CP whose terms are fitted together: terms of the power method, improved in turn.

    Parameters
    ----------
    bound
        Upper limit of the sum of the terms' squared norms, as a multiple of the kernel's squared
        norm (after Phan et al. 2020). The initial terms never exceed 1. Infinity gives plain
        alternating least squares, in which terms may grow without limit while they cancel each
        other.
    tolerance
        Stop when a sweep lowers the relative error by less than this share.
    max_sweeps
        Stop after this many sweeps over the modes.
    """

    bound: float = 2.0
    tolerance: float = 5e-5
    max_sweeps: int = 100

    name: ClassVar[str] = "cp_als"

    def terms(self, kernel: np.ndarray, rank: int) -> Terms:
        """Return the terms of the power method, improved by bounded alternating least squares."""
        return least_squares_terms(
            kernel,
            power_terms(kernel, rank),
            bound=self.bound,
            tolerance=self.tolerance,
            max_sweeps=self.max_sweeps,
        )


ENTRIES = (CpAls(),)
