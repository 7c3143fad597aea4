"""Ranks that divide the cost of each layer by the same factor."""

from typing import Literal

from pydantic import Field

from lowrank.ranks.rank_settings import AdjustedSettings
from lowrank.ranks.rule import Candidate, Milder, RankRule
from lowrank.ranks.scale import dense_cost, ranks_within


class RatioSettings(AdjustedSettings):
    """Settings of `ratio`, which divides the cost of each layer by the same factor."""

    select: Literal["ratio"] = Field(
        "ratio", description="The cost of each layer is divided by the same factor."
    )
    ratio: float = Field(4.0, gt=1, description="Original cost divided by the cost of the factors.")
    cost: Literal["macs", "parameters"] = Field("macs", description="Cost that `ratio` refers to.")


class Ratio(RankRule[RatioSettings]):
    """The largest ranks whose factors cost at most the layer's cost / `ratio`.

    Several ranks are in proportion to the full ranks.
    """

    name = "ratio"
    settings = RatioSettings

    def ranks(self, candidate: Candidate, settings: RatioSettings) -> tuple[int, ...]:
        layer = candidate.layer
        return ranks_within(
            layer,
            candidate.factorization,
            candidate.full_ranks,
            limit=dense_cost(layer, settings.cost) / settings.ratio,
            cost=settings.cost,
        )

    def milder(self, settings: RatioSettings, ease: float) -> Milder:
        return Milder.of(settings, "ratio", milder_ratio(settings.ratio, ease))


def milder_ratio(ratio: float, ease: float) -> float:
    """Return a ratio nearer to 1, by the share `ease` of its logarithm."""
    return max(round(float(ratio ** (1 - ease)), 2), 1.01)


ENTRIES = (Ratio(),)
