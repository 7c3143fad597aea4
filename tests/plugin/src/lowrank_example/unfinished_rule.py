"""A rank rule that is not finished: its settings are those of another rule."""

from typing import Any, ClassVar

from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import Candidate, RankRule
from lowrank_example.share_of_ranks import ShareSettings


class UnfinishedRule(RankRule[ShareSettings]):
    """It does not name its own settings."""

    name: ClassVar[str] = "unfinished"
    settings: ClassVar[type[RankSettings]] = ShareSettings

    def ranks(self, candidate: Candidate, settings: Any) -> tuple[int, ...]:
        return candidate.full_ranks
