"""`dataset`: where labelled images come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowrank.config.section import OwnPath, Section


class DatasetSettings(Section):
    """Labelled images: a dataset that is known by name, or folders of image files."""

    kind: Literal["cifar10", "fashion_mnist", "imagefolder"] | None = Field(
        None, description="What it is; null: what the entry's own name says."
    )
    search: OwnPath = Field("data", description="Folder for files that you fetched by hand.")
    train: OwnPath | None = Field(
        None, description="Of `imagefolder`: a folder with a sub-folder of images for each class."
    )
    validation: OwnPath | None = Field(
        None, description="Of `imagefolder`: such a folder of images that are only reported."
    )
    skip_unreadable: bool = Field(
        False, description="Leave out (and name) image files that cannot be decoded."
    )
    store_pixels: int = Field(
        256, ge=1, le=8192, description="Larger images are stored with this shorter side."
    )
    cache_gib: float = Field(
        8.0, ge=0, description="Decoded images are stored where they take no more GiB than this."
    )
    outputs: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None, description="The network's output for each class; null: its outputs are the classes."
    )
    threads: int = Field(
        2, ge=1, le=1024, description="CPU threads that decode images; any number gives the same."
    )

    def kind_of(self, name: str) -> str:
        """The kind of the entry `name`. Raises ValueError where it lacks one, or its folders."""
        kind = self.kind or name
        known = ("cifar10", "fashion_mnist", "imagefolder")
        if kind not in known:
            raise ValueError(f"`dataset.{name}.kind` is missing; it is one of {', '.join(known)}")
        if (kind == "imagefolder") != (self.train is not None):
            verb = "needs" if kind == "imagefolder" else "takes no"
            raise ValueError(f"`dataset.{name}` of kind {kind} {verb} `train` and `validation`")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSettings":
        if (self.train is None) != (self.validation is None):
            raise ValueError("`train` and `validation` come together")
        taken = list((self.outputs or {}).values())
        if twice := [output for output in taken if taken.count(output) > 1]:
            raise ValueError(f"`outputs` gives output {twice[0]} to two classes")
        return self
