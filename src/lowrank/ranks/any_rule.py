"""Settings of whichever rank rule `select` names."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from lowrank.errors import UserError
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import RULES
from lowrank.settings.alternatives import Alternatives
from lowrank.settings.mistakes import described
from lowrank.settings.section import Section


class AnyRankSettings(Alternatives):
    """Settings of one rank rule, which `select` names."""

    discriminator = "select"
    default = "vbmf"

    @classmethod
    def names(cls) -> list[str]:
        return RULES.names()

    @classmethod
    def section_named(cls, name: str) -> type[Section]:
        return RULES.get(name).settings


def rank_settings(settings: RankSettings | Mapping[str, Any]) -> RankSettings:
    """Return the settings after validation.

    Raises UserError for an unknown rule or setting, or for a value out of range.
    """
    if isinstance(settings, RankSettings):
        return settings
    try:
        return cast(RankSettings, AnyRankSettings.model_validate(settings))
    except ValidationError as error:
        raise UserError(f"ranks: {described(error, AnyRankSettings, settings)}") from error
