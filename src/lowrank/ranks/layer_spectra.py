"""Singular values for the rank rules that need them."""

import numpy as np

from lowrank.errors import UserError
from lowrank.factorize import Spectrum
from lowrank.ranks.rule import Candidate


def spectra_of(candidate: Candidate, kernel: np.ndarray, rule: str) -> tuple[Spectrum, ...]:
    """Return the spectrum for each rank, from the kernel of one group.

    Raises UserError for a factorization whose ranks belong to no unfolding, such as CP.
    """
    spectra = candidate.factorization.spectra(kernel)
    if not spectra:
        raise UserError(
            f"select: '{rule}' chooses ranks by the singular values of an unfolding, but "
            f"{candidate.factorization.name} has no unfolding (layer {candidate.layer.name}). Use "
            "'ratio', 'sensitivity' or 'fixed'."
        )
    return spectra
