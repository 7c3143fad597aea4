"""`dataset`: the images."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank.settings.section import OwnFunction, OwnPath, Section

# Names of entries that stand for their kind, and the setting that a kind needs.
_NAMES = ("cifar10", "fashion_mnist", "imagefolder")
_WITH_SETTING = {"imagefolder": "train", "arrays": "train", "function": "function"}


class DatasetSettings(Section):
    """Images or other inputs: a known dataset, folders, files of arrays, or your own function."""

    chooses = ("kind",)

    kind: Literal["cifar10", "fashion_mnist", "imagefolder", "arrays", "function"] | None = Field(
        None,
        description="Kind of dataset. `imagefolder`: folders of images. `arrays`: .npy or .npz "
        "files with inputs of the network as they are. `function`: your own code. null: the name "
        "of this entry is the kind.",
    )
    search: OwnPath = Field(
        "data",
        description="Folder for files of the dataset that you downloaded yourself. It is searched "
        "before anything is downloaded.",
    )
    train: OwnPath | None = Field(
        None,
        description="For `imagefolder`: folder of training images, with one subfolder for each "
        "class, or without subfolders and labels. For `arrays`: .npy file of inputs (samples, "
        "...), or .npz file with such an array, or one for each input of the network by its name, "
        "and optionally `labels`.",
    )
    validation: OwnPath | None = Field(
        None,
        description="For `imagefolder`: folder of images for the reported accuracy, with one "
        "subfolder for each class, or without subfolders and labels. No choices are made on these "
        "images. For `arrays`: a file like `train`. null: a fifth of the training images, at most "
        "5000, are held out for it.",
    )
    function: OwnFunction | None = Field(
        None,
        description="For `function`: the function, as `package.module:function`, imported with the "
        "current folder on the path. It returns a map-style dataset or a sequence of samples, or a "
        "dictionary of these with `train` and optionally `validation`. A sample is an array or "
        "tensor, such as an image (C, H, W), a dictionary of these for several inputs, or a pair "
        "of this and its class.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="For `function`: its arguments."
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
        if self.kind is None and name not in _NAMES:
            kinds = ", ".join(dict.fromkeys((*_NAMES, *_WITH_SETTING)))
            raise ValueError(f"`dataset.{name}.kind` is missing; expected one of {kinds}")
        if (needed := _WITH_SETTING.get(kind)) and getattr(self, needed) is None:
            raise ValueError(f"`dataset.{name}` of kind {kind} needs `{needed}`")
        if self.train is not None and needed != "train":
            raise ValueError(f"`dataset.{name}` of kind {kind} takes no `train`")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSettings":
        if self.train is None and self.validation is not None:
            raise ValueError("`validation` needs `train`")
        outputs = list((self.outputs or {}).values())
        if repeated := [output for output in outputs if outputs.count(output) > 1]:
            raise ValueError(f"`outputs` assigns output {repeated[0]} to two classes")
        return self

    @property
    def has_arrays(self) -> bool:
        """Whether the samples are arrays that networks take as they are, not images."""
        return self.kind in ("arrays", "function")

    @property
    def own_files(self) -> dict[str, str]:
        """Folders or files of the user, by their parameters."""
        files = {"train": self.train, "validation": self.validation}
        return {key: file for key, file in files.items() if file}
