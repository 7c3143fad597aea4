"""Ranks that keep a share of the squared norm."""

import numpy as np

from lowrank.config.ranks import RankSettings
from lowrank.factorize import group_kernels
from lowrank.ranks.layer_spectra import spectra_of
from lowrank.ranks.rule import Candidate


def energy(candidate: Candidate, settings: RankSettings) -> tuple[int, ...]:
    """The smallest rank whose singular values hold `energy` of the sum of their squares.

    Of each unfolding by itself; a grouped layer takes the largest rank over its groups. Raises
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
    # Rounding leaves the last sum a little off the whole: the whole is reached at the latest there.
    return min(int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12))) + 1, len(kept))
