"""Ranks from a table, for example from a paper."""

from lowrank.config.ranks import RankSettings
from lowrank.errors import UserError
from lowrank.ranks.rule import Candidate


def fixed(candidate: Candidate, settings: RankSettings) -> tuple[int, ...] | None:
    """Return the ranks of the layer in `table`; None if the table does not name it.

    Raises UserError if the number of ranks is wrong or a rank is above full rank.
    """
    name, factorization = candidate.layer.name, candidate.factorization
    if (ranks := settings.table.get(name)) is None:
        return None
    if len(ranks) != len(factorization.rank_names):
        raise UserError(
            f"ranks.table.{name}: found {len(ranks)} ranks, but {factorization.name} needs "
            f"{len(factorization.rank_names)} ({', '.join(factorization.rank_names)}). Give one "
            "number for each."
        )
    for rank_name, rank, full in zip(
        factorization.rank_names, ranks, candidate.full_ranks, strict=True
    ):
        if rank > full:
            raise UserError(
                f"ranks.table.{name}: the {rank_name} rank is {rank}; expected at most {full}, the "
                "full rank of one group of this layer. Lower it."
            )
    return tuple(ranks)
