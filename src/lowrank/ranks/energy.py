"""Ranks that keep a share of the squared norm."""

import numpy as np

from lowrank.config.ranks import RankSettings
from lowrank.factorize import group_kernels
from lowrank.ranks.layer_spectra import spectra_of
from lowrank.ranks.rule import Candidate


def energy(candidate: Candidate, settings: RankSettings) -> tuple[int, ...]:
    """Return the smallest ranks whose singular values hold the share `energy` of the squared norm.

    Each unfolding has its own rank. A grouped layer gets the largest rank over its groups. Raises
    UserError for a factorization without unfoldings.
    """
    ranks_of_groups = [
        [
            _rank_that_keeps(settings.energy, spectrum.singular_values)
            for spectrum in spectra_of(candidate, group, "energy")
        ]
        for group in group_kernels(candidate.layer, candidate.kernel)
    ]
    return tuple(max(ranks) for ranks in zip(*ranks_of_groups, strict=True))


def _rank_that_keeps(share: float, singular_values: np.ndarray) -> int:
    kept = np.cumsum(np.square(singular_values, dtype=np.float64))
    if not kept.any():
        return 0
    # Because of rounding, the last sum may be slightly below the total; the last index is then
    # used.
    return min(int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12))) + 1, len(kept))
