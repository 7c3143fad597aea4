"""`finetune`: training after each round, and distillation from the original network."""

from typing import Literal

from pydantic import Field, model_validator

from lowrank.config.training import TrainingSettings
from lowrank.settings.section import Section


class Distillation(Section):
    """Training on the outputs of the original network."""

    weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the distillation loss in the total loss. 0: labels only. 1: no "
        "labels.",
    )
    temperature: float = Field(
        4.0,
        gt=0,
        le=100,
        description="Outputs are divided by this temperature before they are compared.",
    )
    images: Literal["plain", "augmented"] = Field(
        "plain",
        description="`plain`: compare with the original's outputs for unaugmented images, "
        "computed once. `augmented`: compare with its outputs for the augmented images, "
        "computed in each step; this adds a forward pass of the original to each step.",
    )
    maps: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Weight of feature maps within the distillation loss, next to the outputs: it "
        "is the weight of the relative squared error of each map (`teacher_outputs.maps`). 0: "
        "no feature maps.",
    )


class RoundSettings(TrainingSettings):
    """Training after one round."""

    distill: Distillation = Distillation()

    @property
    def learns_stored_maps(self) -> bool:
        """True if training uses the feature maps that `teacher_outputs` stored."""
        return bool(self.distill.weight and self.distill.maps) and self.distill.images == "plain"

    @model_validator(mode="after")
    def _check_stored_maps(self) -> "RoundSettings":
        augment = self.augment
        if self.learns_stored_maps and (
            augment.pad_pixels or augment.cutout_pixels or augment.resized_crop
        ):
            raise ValueError(
                "`distill.maps` with `distill.images: plain` compares stored feature maps, which "
                "do not match shifted or cropped images. Set `augment` to `{pad_pixels: 0, "
                "cutout_pixels: 0, resized_crop: null}`, or `distill.maps: 0`, or `distill.images: "
                "augmented`"
            )
        return self


class FinetuneSettings(RoundSettings):
    """Training after each round, with a budget for each round or for all rounds together."""

    total_steps: int | None = Field(
        None,
        ge=0,
        description="Training budget of all rounds together, in steps. Give one of `steps`, "
        "`epochs` and `total_steps`.",
    )
    last_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of `total_steps` for the last round, if there are several rounds.",
    )

    def of_round(self, number: int, rounds: int) -> RoundSettings:
        """Return the training settings of round `number` (from 1).

        The last round gets its share of `total_steps`. The other rounds divide the rest evenly.
        """
        settings = self.model_dump(exclude={"total_steps", "last_share"})
        if self.total_steps is not None:
            last = round(self.last_share * self.total_steps) if rounds > 1 else self.total_steps
            before = self.total_steps - last
            settings["steps"] = (
                last
                if number == rounds
                else before * number // (rounds - 1) - before * (number - 1) // (rounds - 1)
            )
        return RoundSettings.model_validate(settings)

    @property
    def _budgets(self) -> list[str]:
        return [*super()._budgets, "total_steps"]

    def unused(self) -> dict[str, str]:
        """Return the settings without effect and why: `last_share` if each round has a budget."""
        reasons = super().unused()
        if self.total_steps is None:
            reasons["last_share"] = "needs `total_steps`, the budget of all rounds together"
        return reasons
