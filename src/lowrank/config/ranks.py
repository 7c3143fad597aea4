"""`methods.<name>.ranks`: the rank rule of a method, in general and for single networks."""

from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from lowrank.ranks.any_rule import AnyRankSettings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.settings.merging import merged
from lowrank.settings.section import Name, Section


class PerNetwork(Section):
    """Settings of a method that may differ for single networks."""

    models: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Entries for one network, which replace the general ones, such as `resnet20: "
        "{weaken: 0.5}`. Mappings are merged, and null resets an entry to its default.",
    )

    def entries_of(self, model: str) -> dict[str, Any]:
        """Return the unchecked entries that apply to one network."""
        general = self.model_dump(exclude_unset=True, exclude={"models"})
        return merged(general, self.models.get(model, {}))


if TYPE_CHECKING:

    class MethodRankSettings(PerNetwork, RankSettings):
        """What the validation returns: settings of one rule, and `models`."""

else:

    class MethodRankSettings(AnyRankSettings):
        """The rule by which a method chooses ranks: settings of that rule, and `models`."""

        @classmethod
        def section_named(cls, name: str) -> type[Section]:
            return _with_models(super().section_named(name))


@cache
def _with_models(settings: type[Section]) -> type[Section]:
    """Return the settings of a rule with the additional entry `models`."""
    return create_model(
        settings.__name__, __base__=(PerNetwork, settings), __doc__=settings.__doc__
    )
