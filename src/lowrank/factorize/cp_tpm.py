"""CP by the tensor power method: 1 x 1, a window on each channel separately, 1 x 1."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.factorize.cp import Cp
from lowrank.factorize.cp_terms import Terms, power_terms


@dataclass(frozen=True)
class CpTpm(Cp):
    """CP whose terms the tensor power method finds one after another (Astrid & Lee 2017).

    Each term lowers the error. Terms cannot grow while they cancel each other, because the sum of
    their squared norms and the squared error equals the kernel's squared norm.

    Parameters
    ----------
    tolerance
        A term is complete when a sweep raises its squared norm by less than this share.
    max_sweeps
        A term is complete after this many sweeps over the modes at the latest.
    """

    tolerance: float = 5e-4
    max_sweeps: int = 100

    name: ClassVar[str] = "cp_tpm"

    def terms(self, kernel: np.ndarray, rank: int) -> Terms:
        """Return the terms of the power method."""
        return power_terms(kernel, rank, tolerance=self.tolerance, max_sweeps=self.max_sweeps)


ENTRIES = (CpTpm(),)
