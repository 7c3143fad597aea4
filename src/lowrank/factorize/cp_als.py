"""CP by alternating least squares: 1 x 1, a window for each channel alone, 1 x 1."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.factorize.cp import Cp
from lowrank.factorize.cp_terms import Terms, least_squares_terms, power_terms


@dataclass(frozen=True)
class CpAls(Cp):
    """CP with terms that fit together: those of the power method, then all improved in turn.

    Parameters
    ----------
    bound
        The sum of the terms' squared norms is at most this multiple of the kernel's squared norm
        (after Phan et al. 2020). The start never exceeds 1. Infinity is plain alternating least
        squares, whose terms may grow without limit against each other.
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
        """Those of the power method, improved by bounded alternating least squares."""
        return least_squares_terms(
            kernel,
            power_terms(kernel, rank),
            bound=self.bound,
            tolerance=self.tolerance,
            max_sweeps=self.max_sweeps,
        )
