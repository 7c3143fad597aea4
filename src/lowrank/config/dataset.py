"""`dataset`: the images."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowrank.settings.section import OwnPath, Section


class DatasetSettings(Section):
    """Images: a dataset with a known name, or folders of image files."""

    kind: Literal["cifar10", "fashion_mnist", "imagefolder"] | None = Field(
        None, description="Kind of dataset. null: the name of this entry is the kind."
    )
    search: OwnPath = Field(
        "data",
        description="Folder for files of the dataset that you downloaded yourself. It is searched "
        "before anything is downloaded.",
    )
    train: OwnPath | None = Field(
        None,
        description="For `imagefolder`: folder of training images, with one subfolder for each "
        "class, or without subfolders and labels.",
    )
    validation: OwnPath | None = Field(
        None,
        description="For `imagefolder`: folder of images for the reported accuracy, with one "
        "subfolder for each class, or without subfolders and labels. No choices are made on these "
        "images. null: a fifth of the training images, at most 5000, are held out for it.",
    )
    skip_unreadable: bool = Field(
        False, description="Skip image files that cannot be decoded, and report their names."
    )
    store_pixels: int = Field(
        256,
        ge=1,
        le=8192,
        description="Larger images are scaled down before they are stored: their shorter side "
        "gets this many pixels.",
    )
    cache_gib: float = Field(
        8.0,
        ge=0,
        description="Largest size of all decoded images, in GiB. Up to this size they are stored "
        "decoded; otherwise the image files are decoded when they are read.",
    )
    outputs: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="Index of the network's output for each class. null: the outputs are the "
        "classes of the dataset.",
    )
    threads: int = Field(
        2,
        ge=1,
        le=1024,
        description="Number of CPU threads that decode images. It does not affect the result.",
    )

    def kind_of(self, name: str) -> str:
        """Return the kind of the entry `name`.

        Raises ValueError if the kind is missing, or if the folders do not fit the kind.
        """
        kind = self.kind or name
        known = ("cifar10", "fashion_mnist", "imagefolder")
        if kind not in known:
            raise ValueError(
                f"`dataset.{name}.kind` is missing; expected one of {', '.join(known)}"
            )
        if (kind == "imagefolder") != (self.train is not None):
            takes = "needs `train`" if kind == "imagefolder" else "takes no `train`"
            raise ValueError(f"`dataset.{name}` of kind {kind} {takes}")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSettings":
        if self.train is None and self.validation is not None:
            raise ValueError("`validation` needs `train`")
        outputs = list((self.outputs or {}).values())
        if repeated := [output for output in outputs if outputs.count(output) > 1]:
            raise ValueError(f"`outputs` assigns output {repeated[0]} to two classes")
        return self
