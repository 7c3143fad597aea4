"""Singular values for the rules that look at them."""

import numpy as np

from lowrank.errors import UserError
from lowrank.factorize import Spectrum
from lowrank.ranks.rule import Candidate


def spectra_of(candidate: Candidate, kernel: np.ndarray, rule: str) -> tuple[Spectrum, ...]:
    """The spectrum that belongs to each rank, of the kernel of one group.

    Raises UserError for a factorization whose ranks belong to no unfolding, as those of CP.
    """
    spectra = candidate.factorization.spectra(kernel)
    if not spectra:
        raise UserError(
            f"select: '{rule}' chooses ranks by the singular values of an unfolding, and "
            f"{candidate.factorization.name} has none (layer {candidate.layer.name}). Take "
            "'ratio', 'sensitivity' or 'fixed'."
        )
    return spectra
