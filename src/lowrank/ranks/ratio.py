"""Ranks with the same saving in every layer."""

from lowrank.config.ranks import RankSettings
from lowrank.ranks.rule import Candidate
from lowrank.ranks.scale import dense_cost, ranks_within


def ratio(candidate: Candidate, settings: RankSettings) -> tuple[int, ...]:
    """Return the largest ranks whose factors cost at most the layer's cost / `ratio`.

    Several ranks are in proportion to the full ranks.
    """
    layer = candidate.layer
    return ranks_within(
        layer,
        candidate.factorization,
        candidate.full_ranks,
        limit=dense_cost(layer, settings.cost) / settings.ratio,
        cost=settings.cost,
    )
