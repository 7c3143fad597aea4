"""`checkpoint`: trained networks, their weights and their validation images."""

from typing import Any, Literal

from pydantic import Field, model_validator

from lowrank.config.network_source import NetworkSource
from lowrank.config.section import Name, OwnPath, Section, Threads


class ValidationSettings(Section):
    """Which images choices are made on: ranks, searches, int8 tolerance, early stopping."""

    from_: Literal["train", "test"] = Field(
        "train",
        alias="from",
        description="`train`: held out of the training images. `test`: drawn from the test images, "
        "of which only the rest is reported; for weights that were trained on every training "
        "image.",
    )
    images: int | None = Field(
        None,
        ge=1,
        description="How many of those. Default: 5000, but at most a tenth of the training images "
        "or half of the test images.",
    )
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="Instead: a folder of your own images with a sub-folder for each class.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ValidationSettings":
        if self.folder is not None and self.model_fields_set & {"from_", "images"}:
            raise ValueError(
                "`folder` goes with no other entry: all of its images are validation images"
            )
        return self

    def to_document(self) -> dict[str, Any]:
        """The entry as it stands in params.yaml, without what is left at its default."""
        if self.folder is not None:
            return {"folder": self.folder}
        return {"from": self.from_} | ({} if self.images is None else {"images": self.images})


class CheckpointSettings(NetworkSource, Section):
    """A trained network: how it is built, its weights, and the images that it is for."""

    dataset: Name = Field(description="A name under `dataset`.")
    weights: OwnPath = Field(
        description="File of trained weights: .safetensors, .pth, .pt, .pth.tar, .ckpt, .bin or "
        ".caffemodel. With "
        "`torchvision_weights`, data/weights/<model>.pth is downloaded when it is missing."
    )
    validation: ValidationSettings = ValidationSettings()
    state_key: str | None = Field(
        None,
        min_length=1,
        description="Which weights of a PyTorch file that holds several, such as `model_ema`. "
        "Default: those as trained, not averaged ones.",
    )
    threads: Threads = 2
