"""`checkpoint`: trained networks, their weights and their validation images."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lowrank.config.metric_source import MetricSettings
from lowrank.config.network_source import NetworkSource
from lowrank.settings.section import MeasuringDevice, Name, OwnPath, Section, Threads
from lowrank.tasks import DEFAULT_TASK, TASKS, get_task

if TYPE_CHECKING:
    _Task = str
else:
    _Task = Literal[tuple(TASKS.names())]


class ValidationSettings(Section):
    """Validation images: ranks, searches, int8 tolerance and early stopping are decided on them."""

    from_: Literal["train", "test"] = Field(
        "train",
        alias="from",
        description="`train`: hold the images out of the training images. `test`: draw them from "
        "the test images, and report the accuracy on the remaining test images only. Use `test` "
        "for weights that were trained on all training images.",
    )
    images: int | None = Field(
        None,
        ge=1,
        description="Number of validation images. Default: 5000, but at most a tenth of the "
        "training images or half of the test images.",
    )
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="Folder of your own validation images, with one subfolder for each class, or "
        "without subfolders and labels. Use it instead of `from` and `images`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ValidationSettings":
        if self.folder is not None and self.model_fields_set & {"from_", "images"}:
            raise ValueError(
                "`folder` cannot be combined with other entries: all images in it are validation "
                "images"
            )
        return self

    def to_document(self) -> dict[str, Any]:
        """Return the entry as in params.yaml, without settings at their default."""
        if self.folder is not None:
            return {"folder": self.folder}
        return {"from": self.from_} | ({} if self.images is None else {"images": self.images})


class CheckpointSettings(NetworkSource, Section):
    """A trained network: how to build it, its weights and its dataset."""

    dataset: Name = Field(description="Name of an entry under `dataset`.")
    weights: OwnPath = Field(
        description="File with the trained weights: .safetensors, .pth, .pt, .th, .pth.tar, .ckpt, "
        ".bin or .caffemodel; or an .onnx file, which is the network with its weights (same as "
        "`onnx`). With `torchvision_weights`, data/weights/<model>.pth is "
        "downloaded if it is missing."
    )
    task: _Task = Field(
        DEFAULT_TASK,
        description="What the network does. It decides the loss of training and the metric: its "
        "name, its unit and whether higher is better.",
    )
    metric: MetricSettings | None = Field(
        None,
        description="A metric of your own, instead of the task's: `package.module:function`, or a "
        "section. The network then learns from the outputs of the original.",
    )
    validation: ValidationSettings = ValidationSettings()
    calibration: OwnPath | None = Field(
        None,
        description="Folder of your own images, without labels, for the inputs of layers "
        "(`norm: activation`) and the ranges of int8. null: the training images.",
    )
    state_key: str | None = Field(
        None,
        min_length=1,
        description="Key of the weights in a PyTorch file that holds several sets of weights, "
        "such as `model_ema`. Default: the weights as trained, not averaged weights.",
    )
    threads: Threads = 2
    device: MeasuringDevice = "cpu"

    @property
    def learns_from_labels(self) -> bool:
        """Whether the task of the network has a loss for labels."""
        return self.metric is None and get_task(self.task).needs_labels

    @model_validator(mode="before")
    @classmethod
    def _one_onnx_file(cls, document: Any) -> Any:
        """Let `onnx` and `weights` stand for each other: an ONNX file is network and weights."""
        if not isinstance(document, dict):
            return document
        onnx, weights = document.get("onnx"), document.get("weights")
        if onnx is not None and weights is None:
            return document | {"weights": onnx}
        if onnx is None and isinstance(weights, str) and weights.endswith(".onnx"):
            return document | {"onnx": weights}
        return document

    @model_validator(mode="after")
    def _consistent_with_file(self) -> "CheckpointSettings":
        if self.onnx is not None and self.weights != self.onnx:
            raise ValueError(
                "an ONNX file holds the network and its weights: give either `onnx` or `weights`, "
                "not two different files"
            )
        if self.onnx is not None and self.state_key is not None:
            raise ValueError("`state_key` is for PyTorch files, not for an ONNX file")
        if self.metric is not None and "task" in self.model_fields_set:
            raise ValueError("give either `task` or `metric`, not both")
        return self

    @property
    def own_folders(self) -> dict[str, str]:
        """Folders of images that belong to this network, by their parameters."""
        folders = {"validation": self.validation.folder, "calibration": self.calibration}
        return {entry: folder for entry, folder in folders.items() if folder}
