"""Training settings that pre-training and fine-tuning share, and the section `pretrain`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowrank.errors import UserError
from lowrank.settings.section import Device, OwnPath, Precision, Section, Threads


class Augmentation(Section):
    """Random changes to training images."""

    pad_pixels: int = Field(
        4, ge=0, le=64, description="Largest random translation, in pixels. 0: none."
    )
    flip: bool = Field(True, description="Mirror each image horizontally in every other epoch.")
    cutout_pixels: int = Field(
        0,
        ge=0,
        le=1024,
        description="Side of a square at a random position that is filled with gray, in pixels. "
        "0: none.",
    )
    resized_crop: tuple[float, float] | None = Field(
        None,
        description="Smallest and largest area of a random crop, as shares of the image area. The "
        "crop replaces the translation. null: no crop.",
    )

    @property
    def changes(self) -> bool:
        """True if images differ between epochs."""
        return bool(self.pad_pixels or self.flip or self.cutout_pixels or self.resized_crop)

    def require_none(self) -> None:
        """Raise UserError if anything is set, for a dataset of arrays."""
        if self.changes:
            raise UserError(
                "`augment`: the dataset has arrays, which are used as they are; only images can be "
                "changed. Set `augment` to `{pad_pixels: 0, flip: false, cutout_pixels: 0, "
                "resized_crop: null}`."
            )

    @model_validator(mode="after")
    def _check_bounds(self) -> "Augmentation":
        if self.resized_crop and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(
                f"`resized_crop` is {list(self.resized_crop)}; expected two shares in ascending "
                "order, above 0 and at most 1"
            )
        return self


class Freezing(Section):
    """Freeze the first layers for the rest of the steps, which makes these steps cheaper."""

    layers: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the layers to freeze, counted from the first layer that runs. 0: "
        "none.",
    )
    after: float = Field(
        0.3, ge=0, lt=1, description="Share of the steps that train all layers, before the freeze."
    )


class TrainingSettings(Section):
    """Training budget, optimizer and learning rate; shared by pre-training and fine-tuning."""

    chooses = ("schedule", "optimizer")

    steps: int | None = Field(
        None, ge=0, description="Training budget in steps. Give either `steps` or `epochs`."
    )
    epochs: float | None = Field(
        None, gt=0, description="Training budget in passes over the training images."
    )
    batch_size: int = Field(128, ge=1, description="Number of images in one step.")
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="Optimizer. `sgd` uses Nesterov momentum."
    )
    learning_rate: float = Field(gt=0, le=100, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="For `optimizer: sgd`: momentum.")
    weight_decay: float = Field(
        5e-4,
        ge=0,
        le=10,
        description="Weight decay of kernels and matrices; other parameters have none.",
    )
    schedule: Literal["cosine", "linear", "step", "constant"] = Field(
        "cosine", description="How the learning rate decreases after the warm-up."
    )
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75),
        description="For `schedule: step`: fractions of the budget at which the learning rate "
        "decreases.",
    )
    step_factor: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="For `schedule: step`: factor by which the learning rate is multiplied.",
    )
    warmup_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the budget over which the learning rate warms up."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the target probability that is spread evenly over the classes.",
    )
    average_last: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the steps, at the end, over which the weights are averaged. 0: the "
        "weights of the last step.",
    )
    freeze: Freezing = Freezing()
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="Largest norm of the gradient; larger gradients are scaled down. null: no "
        "limit.",
    )
    augment: Augmentation = Augmentation()
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Number of processes of a training run; each has a GPU, or its share of the "
        "`threads`, and its share of each batch. `auto`: one for each GPU that the job sees.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the initial weights, of the order of the images and of the "
        "augmentation.",
    )
    curve_every_steps: int = Field(
        50, ge=1, description="Number of steps between two points of the training curve."
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        description="Number of steps between two validation accuracies on the training curve; a "
        "multiple of `curve_every_steps`. null: none.",
    )

    @property
    def trains(self) -> bool:
        """True if there is at least one training step."""
        return any(getattr(self, name) for name in self._budgets)

    @property
    def _budgets(self) -> list[str]:
        return ["steps", "epochs"]

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        budgets = [name for name in self._budgets if getattr(self, name) is not None]
        if len(budgets) != 1:
            raise ValueError(
                f"give the budget as one of {', '.join(f'`{name}`' for name in self._budgets)}; "
                f"found {' and '.join(budgets) or 'none'}"
            )
        if self.validate_every_steps and self.validate_every_steps % self.curve_every_steps:
            raise ValueError(
                f"`validate_every_steps` ({self.validate_every_steps}) must be a multiple of "
                f"`curve_every_steps` ({self.curve_every_steps})"
            )
        if self.processes != "auto" and self.batch_size % self.processes:
            raise ValueError(
                f"`batch_size` ({self.batch_size}) must be a multiple of `processes` "
                f"({self.processes}), because each process gets the same share of a batch"
            )
        return self


class PretrainSettings(TrainingSettings):
    """A recipe for training a checkpoint."""

    start: OwnPath | None = Field(
        None, description="Weights to start from (a warm restart). null: random weights."
    )
