"""Ranks from a table: a paper's, or one's own."""

from lowrank.config.ranks import RankSettings
from lowrank.errors import UserError
from lowrank.ranks.rule import Candidate


def fixed(candidate: Candidate, settings: RankSettings) -> tuple[int, ...] | None:
    """The ranks that `table` gives for the layer; None where it gives none.

    Raises UserError for another number of ranks than the factorization has, or one above its
    bound.
    """
    name, factorization = candidate.layer.name, candidate.factorization
    if (ranks := settings.table.get(name)) is None:
        return None
    if len(ranks) != len(factorization.rank_names):
        raise UserError(
            f"ranks.table.{name}: found {len(ranks)} ranks, {factorization.name} takes "
            f"{len(factorization.rank_names)} ({', '.join(factorization.rank_names)}). Give one "
            "number for each."
        )
    for which, rank, full in zip(
        factorization.rank_names, ranks, candidate.full_ranks, strict=True
    ):
        if rank > full:
            raise UserError(
                f"ranks.table.{name}: the {which} rank is {rank}, where at most {full} is of use "
                "to one group of this layer. Lower it."
            )
    return tuple(ranks)
