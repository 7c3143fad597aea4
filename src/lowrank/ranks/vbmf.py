"""Ranks by variational Bayesian matrix factorization, as in Kim et al. 2016."""

import math

import numpy as np

from lowrank.factorize import Factorization, evbmf_rank, group_kernels, one_group
from lowrank.plan import Layer
from lowrank.ranks.base import RankSettings


def vbmf(
    layer: Layer, kernel: np.ndarray, factorization: Factorization, settings: RankSettings
) -> tuple[int, ...]:
    """EVBMF on the unfolding that belongs to each rank (Kim et al. 2016, section 3.2).

    A grouped layer takes the largest rank over its groups, so that its factors stay plain grouped
    convolutions. `weaken` w then gives r + w (full rank - r), rounded up.
    """
    ranks_of_groups = [
        [evbmf_rank(spectrum)[0] for spectrum in factorization.spectra(group)]
        for group in group_kernels(layer, kernel)
    ]
    found = [max(ranks) for ranks in zip(*ranks_of_groups, strict=True)]
    full = factorization.full_ranks(one_group(layer))
    return tuple(
        _weakened(rank, largest, settings.weaken) for rank, largest in zip(found, full, strict=True)
    )


def _weakened(rank: int, full: int, weaken: float) -> int:
    # Rounded first: 0.1 x 30 is a little more than 3 in floating point, and not to become 4.
    return rank + math.ceil(round(weaken * (full - rank), 9))
