"""Ranks that keep a share of the squared norm."""

from typing import Literal

import numpy as np
from pydantic import Field

from lowrank.factorize import group_kernels
from lowrank.ranks.layer_spectra import spectra_of
from lowrank.ranks.rank_settings import AdjustedSettings
from lowrank.ranks.rule import Candidate, Milder, RankRule


class EnergySettings(AdjustedSettings):
    """A share of the squared norm of the weights."""

    select: Literal["energy"] = Field(
        "energy", description="The smallest ranks that keep a share of the squared norm."
    )
    energy: float = Field(0.9, gt=0, le=1, description="Share of the squared norm to keep.")


class Energy(RankRule[EnergySettings]):
    """The smallest ranks whose singular values hold the share `energy` of the squared norm.

    Each unfolding has its own rank. A grouped layer gets the largest rank over its groups. A
    factorization without unfoldings gives a UserError.
    """

    name = "energy"
    settings = EnergySettings

    def ranks(self, candidate: Candidate, settings: EnergySettings) -> tuple[int, ...]:
        ranks_of_groups = [
            [
                _rank_that_keeps(settings.energy, spectrum.singular_values)
                for spectrum in spectra_of(candidate, group, self.name)
            ]
            for group in group_kernels(candidate.layer, candidate.kernel)
        ]
        return tuple(max(ranks) for ranks in zip(*ranks_of_groups, strict=True))

    def milder(self, settings: EnergySettings, ease: float) -> Milder:
        return Milder.of(
            settings, "energy", round(settings.energy + ease * (1 - settings.energy), 3)
        )


def _rank_that_keeps(share: float, singular_values: np.ndarray) -> int:
    kept = np.cumsum(np.square(singular_values, dtype=np.float64))
    if not kept.any():
        return 0
    # Because of rounding, the last sum may be slightly below the total; the last index is then
    # used.
    return min(int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12))) + 1, len(kept))


ENTRIES = (Energy(),)
