"""A rank rule: a share of the full ranks."""

from typing import ClassVar, Literal

from pydantic import Field

from lowrank.ranks.rank_settings import AdjustedSettings, RankSettings
from lowrank.ranks.rule import Candidate, Milder, RankRule


class ShareSettings(AdjustedSettings):
    """A share of the full ranks."""

    select: Literal["share"] = Field("share", description="A share of the full ranks.")
    share: float = Field(0.5, gt=0, le=1, description="Share of each full rank.")


class ShareOfRanks(RankRule[ShareSettings]):
    """A share of the full ranks."""

    name: ClassVar[str] = "share"
    settings: ClassVar[type[RankSettings]] = ShareSettings

    def ranks(self, candidate: Candidate, settings: ShareSettings) -> tuple[int, ...]:
        return tuple(max(1, round(settings.share * full)) for full in candidate.full_ranks)

    def milder(self, settings: ShareSettings, ease: float) -> Milder:
        share = round(settings.share + ease * (1 - settings.share), 3)
        return Milder.of(settings, "share", share)
