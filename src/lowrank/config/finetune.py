"""`finetune`: training after each round, and learning from the original network."""

from typing import Literal

from pydantic import Field, model_validator

from lowrank.config.section import Section
from lowrank.config.training import TrainingSettings


class Distillation(Section):
    """Learning from the original network's outputs."""

    weight: float = Field(
        0.0, ge=0, le=1, description="Share of the loss; 0: labels alone, 1: no labels at all."
    )
    temperature: float = Field(
        4.0, gt=0, le=100, description="Outputs are divided by it before they are compared."
    )
    images: Literal["plain", "augmented"] = Field(
        "plain",
        description="Its outputs for the images as they are, computed once; or as augmented, "
        "computed in each step, which then costs its forward pass, too.",
    )
    maps: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Within that share, beside the outputs: the weight of the relative squared "
        "error of each feature map (`teacher_outputs.maps`); 0: none.",
    )


class RoundSettings(TrainingSettings):
    """Training after one round."""

    distill: Distillation = Distillation()

    @property
    def learns_stored_maps(self) -> bool:
        """Whether feature maps are compared that `teacher_outputs` stored."""
        return bool(self.distill.weight and self.distill.maps) and self.distill.images == "plain"

    @model_validator(mode="after")
    def _maps_in_place(self) -> "RoundSettings":
        augment = self.augment
        if self.learns_stored_maps and (
            augment.pad_pixels or augment.cutout_pixels or augment.resized_crop
        ):
            raise ValueError(
                "`distill.maps` with `distill.images: plain` compares stored feature maps, which "
                "do not fit moved or cut images. Set `augment` to `{pad_pixels: 0, cutout_pixels: "
                "0, resized_crop: null}`, or `distill.maps: 0`, or `distill.images: augmented`"
            )
        return self


class FinetuneSettings(RoundSettings):
    """Training after each round; the budget is one round's, or that of all rounds together."""

    total_steps: int | None = Field(
        None, ge=0, description="Budget of all rounds together, in steps."
    )
    last_share: float = Field(
        0.5, gt=0, le=1, description="Share of `total_steps` that the last of several rounds gets."
    )

    def of_round(self, number: int, rounds: int) -> RoundSettings:
        """The training of round `number` (from 1).

        Of `total_steps` the last round gets its share, and the others divide the rest evenly.
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
        """Return the keys without effect here: `last_share` too where each round has a budget."""
        found = super().unused()
        if self.total_steps is None:
            found["last_share"] = "needs `total_steps`, the budget of all rounds together"
        return found
