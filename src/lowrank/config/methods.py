"""`methods`: factorization, rank rule, schedule and fine-tuning under one name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lowrank.config.factorize import FactorizeSettings
from lowrank.config.mistakes import shown
from lowrank.config.ranks import MethodRankSettings
from lowrank.config.schedule import ScheduleSettings
from lowrank.config.section import Section


class MethodSettings(Section):
    """A method is only data: factorizations, rank rule, schedule, and its own fine-tuning."""

    factorize: Annotated[
        FactorizeSettings | None, AfterValidator(lambda found: found or FactorizeSettings())
    ] = Field(
        FactorizeSettings(),
        description="Factorization by kind of layer; null or absent: all layers stay dense, for a "
        "control or for int8 alone.",
    )
    ranks: MethodRankSettings = MethodRankSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    finetune: dict[str, Any] = Field(
        default_factory=dict,
        description="Entries that replace those of `finetune`; under `models`, for one network. "
        "Mappings are merged, and null takes an entry back to its default.",
    )
    quantize: Literal["int8"] | None = Field(
        None, description="Of the exported network; null: float alone."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MethodSettings":
        rules = {self.ranks.select} | {
            each["select"] for each in self.ranks.models.values() if "select" in each
        }
        if self.factorize.alternatives and rules != {"budget"}:
            raise ValueError("`factorize.alternatives` needs `ranks.select: budget`")
        if self.ranks.searches and self.schedule.kind != "one_shot":
            raise ValueError(
                "`ranks.target.accuracy_drop` needs `schedule: {kind: one_shot}`: a trial is one "
                f"round, not those of '{self.schedule.kind}'"
            )
        return self

    @model_validator(mode="after")
    def _finetune_of_models(self) -> "MethodSettings":
        models = self.finetune.get("models", {})
        if not isinstance(models, Mapping):
            raise ValueError(
                f"`finetune.models` is {shown(models)}; entries by network, such as "
                "`{resnet20: {steps: 500}}`, were expected"
            )
        for name, entries in models.items():
            if not isinstance(entries, Mapping):
                raise ValueError(
                    f"`finetune.models.{name}` is {shown(entries)}; entries of `finetune`, such as "
                    "`{steps: 500}`, were expected"
                )
        return self

    def of_models(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What differs for one network, by section and network."""
        return {"ranks": self.ranks.models, "finetune": self.finetune.get("models", {})}
