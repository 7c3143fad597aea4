"""The meaning, unit and bounds of every parameter in params.yaml."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of params.yaml: no key that is not described here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Augmentation(Section):
    """What is done to a training image at random."""

    pad_pixels: int = Field(4, ge=0, le=64, description="Largest random translation, in pixels.")
    flip: bool = Field(True, description="Mirror horizontally, every other epoch.")


class TrainingSettings(Section):
    """A budget, an optimizer and its schedule; shared by pre-training and fine-tuning."""

    steps: int | None = Field(None, ge=1, description="Budget in steps; wins over `epochs`.")
    epochs: float | None = Field(None, gt=0, description="Budget in passes over the images.")
    batch_size: int = Field(128, ge=1, description="Images in one step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD is with Nesterov momentum.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, description="On kernels and matrices alone.")
    schedule: Literal["cosine", "linear", "step", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="For `schedule: step`: fractions of the budget where it falls."
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="For `schedule: step`: by how much.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the budget.")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    augment: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 autocast where the hardware has it, by `auto`."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="A GPU, by `auto`.")
    threads: int = Field(2, ge=1, description="CPU threads; other counts round differently.")
    seed: int = Field(0, ge=0)
    curve_every_steps: int = Field(50, ge=1, description="A point of the curve, in steps.")
    validate_every_steps: int | None = Field(
        None, ge=1, description="A validation accuracy on the curve; a multiple of the above."
    )
