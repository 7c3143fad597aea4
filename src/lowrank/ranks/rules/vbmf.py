"""Ranks by variational Bayesian matrix factorization, as in Kim et al. 2016."""

from typing import Literal

import numpy as np
from pydantic import Field

from lowrank.factorize import evbmf_rank, group_kernels
from lowrank.factorize.spectra import leading_left_vectors, spectrum_of
from lowrank.ranks.layer_spectra import spectra_of
from lowrank.ranks.rank_settings import AdjustedSettings
from lowrank.ranks.rule import Candidate, RankRule

# Singular values below this share of the largest one are rounding of float32.
_ROUNDING = 1e-5


class VbmfSettings(AdjustedSettings):
    """The ranks that stand out of the noise in the weights."""

    select: Literal["vbmf"] = Field(
        "vbmf", description="The ranks that stand out of the noise in the weights."
    )


class Vbmf(RankRule[VbmfSettings]):
    """Ranks by EVBMF on the unfolding for each rank (Kim et al. 2016, section 3.2).

    A grouped layer gets the largest rank over its groups, so that its factors stay plain grouped
    convolutions. For a layer that is already factored, the core is analyzed, as in MUSCO (Gusak et
    al. 2019). In its full kernel all other singular values are 0, so EVBMF would treat all its
    ranks as free of noise. A factorization without unfoldings gives a UserError.
    """

    name = "vbmf"
    settings = VbmfSettings
    is_goal = False

    def ranks(self, candidate: Candidate, settings: VbmfSettings) -> tuple[int, ...]:
        grouped = group_kernels(candidate.layer, candidate.kernel)
        kernels = [condensed(kernel) for kernel in grouped] if candidate.is_factored else grouped
        ranks_of_groups = [
            [evbmf_rank(spectrum)[0] for spectrum in spectra_of(candidate, kernel, self.name)]
            for kernel in kernels
        ]
        return tuple(max(ranks) for ranks in zip(*ranks_of_groups, strict=True))


def condensed(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel in bases of its own channel spaces: (T, S, D_h, D_w) -> (T', S', D_h, D_w).

    T' and S' are the ranks of the unfoldings by output and by input channels. The change of basis
    keeps all nonzero singular values.
    """
    for axis in (0, 1):
        first = np.moveaxis(kernel, axis, 0)
        unfolding = first.reshape(first.shape[0], -1)
        singular_values = spectrum_of(unfolding).singular_values
        rank = max(1, int(np.count_nonzero(singular_values > _ROUNDING * singular_values.max())))
        # (C, C') x (C, M) -> (C', M)
        in_new_basis = leading_left_vectors(unfolding, rank).T @ unfolding
        kernel = np.moveaxis(in_new_basis.reshape(rank, *first.shape[1:]), 0, axis)
    return kernel


ENTRIES = (Vbmf(),)
