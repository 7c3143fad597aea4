"""Settings of training that pre-training and fine-tuning share, and `pretrain`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowrank.config.section import Device, OwnPath, Precision, Section, Threads


class Augmentation(Section):
    """What is done to a training image at random."""

    pad_pixels: int = Field(4, ge=0, le=64, description="Largest random translation, in pixels.")
    flip: bool = Field(True, description="Mirror horizontally, every other epoch.")
    cutout_pixels: int = Field(
        0, ge=0, le=1024, description="Side of a square that is greyed out, in pixels; 0: none."
    )
    resized_crop: tuple[float, float] | None = Field(
        None,
        description="Bounds of a random crop's share of the image's area, instead of translation; "
        "null: none.",
    )

    @property
    def changes(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return bool(self.pad_pixels or self.flip or self.cutout_pixels or self.resized_crop)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "Augmentation":
        if self.resized_crop and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(
                f"`resized_crop` is {list(self.resized_crop)}; two shares in ascending order, "
                "above 0 and at most 1, were expected"
            )
        return self


class Freezing(Section):
    """Leaving the first layers as they are for the rest of the steps, which then cost less."""

    layers: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers, the first to run; 0: none."
    )
    after: float = Field(0.3, ge=0, lt=1, description="Share of the steps that train them all.")


class TrainingSettings(Section):
    """A budget, an optimizer and its schedule; shared by pre-training and fine-tuning."""

    chooses = ("schedule", "optimizer")

    steps: int | None = Field(None, ge=0, description="Budget in steps (this or `epochs`).")
    epochs: float | None = Field(None, gt=0, description="Budget in passes over the images.")
    batch_size: int = Field(128, ge=1, description="Images in one step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD is with Nesterov momentum.")
    learning_rate: float = Field(gt=0, le=100, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, le=10, description="On kernels and matrices alone.")
    schedule: Literal["cosine", "linear", "step", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="For `schedule: step`: fractions of the budget where it falls."
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="For `schedule: step`: by how much.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the budget.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread out.")
    average_last: float = Field(
        0.0, ge=0, le=1, description="Share of the steps whose weights are averaged; 0: the last's."
    )
    freeze: Freezing = Freezing()
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    augment: Augmentation = Augmentation()
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2
    seed: int = Field(
        0, ge=0, lt=2**32, description="Of the weights, the order and the augmentation."
    )
    curve_every_steps: int = Field(50, ge=1, description="A point of the curve, in steps.")
    validate_every_steps: int | None = Field(
        None, ge=1, description="A validation accuracy on the curve; a multiple of the above."
    )

    @property
    def trains(self) -> bool:
        """Whether there is any step to take."""
        return any(getattr(self, name) for name in self._budgets)

    @property
    def _budgets(self) -> list[str]:
        return ["steps", "epochs"]

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        given = [name for name in self._budgets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give the budget as one of {', '.join(f'`{name}`' for name in self._budgets)}; "
                f"found {' and '.join(given) or 'none'}"
            )
        if self.validate_every_steps and self.validate_every_steps % self.curve_every_steps:
            raise ValueError(
                f"`validate_every_steps` ({self.validate_every_steps}) must be a multiple of "
                f"`curve_every_steps` ({self.curve_every_steps})"
            )
        return self


class PretrainSettings(TrainingSettings):
    """A recipe for a checkpoint."""

    start: OwnPath | None = Field(
        None, description="Weights to go on from (a warm restart); null: random ones."
    )
