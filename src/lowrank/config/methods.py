"""`methods`: factorizations, rank rule, schedule and fine-tuning under one name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from lowrank.config.factorize import FactorizeSettings
from lowrank.config.ranks import MethodRankSettings
from lowrank.config.schedule import ScheduleSettings
from lowrank.ranks.rule import RULES
from lowrank.settings.mistakes import shown
from lowrank.settings.section import Section

if TYPE_CHECKING:
    _Factorize = FactorizeSettings
else:
    # null is the same as no entries.
    _Factorize = Annotated[
        FactorizeSettings | None, AfterValidator(lambda value: value or FactorizeSettings())
    ]


class MethodSettings(Section):
    """A method: factorizations, rank rule, schedule, fine-tuning and quantization."""

    factorize: _Factorize = Field(
        FactorizeSettings(),
        description="Factorization of each kind of layer. null or missing: all layers stay dense, "
        "for a control or for int8 only.",
    )
    ranks: SerializeAsAny[MethodRankSettings] = Field(
        default_factory=lambda: MethodRankSettings.model_validate({}),
        description="Rank rule, and its settings.",
    )
    schedule: ScheduleSettings = ScheduleSettings()
    finetune: dict[str, Any] = Field(
        default_factory=dict,
        description="Entries that replace those of the section `finetune`. Entries under `models` "
        "are for one network. Mappings are merged, and null resets an entry to its default.",
    )
    quantize: Literal["int8"] | None = Field(
        None, description="Quantization of the exported network. null: float only."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MethodSettings":
        rules = {self.ranks.select} | {
            entries["select"] for entries in self.ranks.models.values() if "select" in entries
        }
        comparing = [name for name, rule in RULES.usable().items() if rule.compares_factorizations]
        if self.factorize.alternatives and not rules <= {*comparing}:
            users = " or ".join(f"`ranks.select: {name}`" for name in comparing)
            raise ValueError(f"`factorize.alternatives` needs {users}")
        if self.ranks.searches and self.schedule.kind != "one_shot":
            raise ValueError(
                "`ranks.target.accuracy_drop` needs `schedule: {kind: one_shot}`, because a trial "
                f"has one round; found the schedule '{self.schedule.kind}'"
            )
        return self

    @model_validator(mode="after")
    def _check_finetune_of_models(self) -> "MethodSettings":
        models = self.finetune.get("models", {})
        if not isinstance(models, Mapping):
            raise ValueError(
                f"`finetune.models` is {shown(models)}; expected entries by network, such as "
                "`{resnet20: {steps: 500}}`"
            )
        for name, entries in models.items():
            if not isinstance(entries, Mapping):
                raise ValueError(
                    f"`finetune.models.{name}` is {shown(entries)}; expected entries of "
                    "`finetune`, such as `{steps: 500}`"
                )
        return self

    def of_models(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the entries that are for one network, by section and network."""
        return {"ranks": self.ranks.models, "finetune": self.finetune.get("models", {})}
