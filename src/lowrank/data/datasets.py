"""Open stored datasets: memory-mapped images and labels in training, validation and test splits."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank.config.checkpoint import ValidationSettings
from lowrank.data.images import ImageFiles, Images, InputArray, StoredImages
from lowrank.data.matching import require_arrays_match
from lowrank.data.sources import UNLABELLED
from lowrank.data.splits import divide, read_splits
from lowrank.errors import UserError
from lowrank.files import read_json
from lowrank.tasks import TASKS
from lowrank.zoo.registry import NetworkSpec


@dataclass(frozen=True)
class Split:
    """Images and labels, with the rows that belong to one split.

    Attributes
    ----------
    images
        8-bit images: an array (N, H, W, C), or an object that returns one image (H, W, C) at a
        time; or inputs that a network takes as they are.
    labels
        Classes of all images, (N,).
    rows
        Rows of `images` and `labels` that belong to the split.
    outputs
        Index of the network output for each class. None means that the outputs are the classes.
    unlabelled
        Reason why the labels are not known. An empty string means that `labels` are valid.
    name
        Name of the split: `train`, `validation` or `test`.
    reference
        Function from a batch of inputs to the outputs of the original network, which replace the
        labels; see `Dataset.with_reference`.
    """

    images: Images
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    outputs: tuple[int, ...] | None = None
    unlabelled: str = ""
    name: str = ""
    reference: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, count: int, seed: int = 0) -> "Split":
        """Return a split with `count` random images, or all images if there are fewer.

        The sample depends only on `seed`.
        """
        rows = np.random.default_rng(seed).permutation(self.rows)[:count]
        return replace(self, rows=np.sort(rows))

    def require_labels(self, purpose: str) -> None:
        """Raise UserError if the images have no labels. `purpose` says what needs them."""
        if self.unlabelled:
            raise UserError(
                f"{purpose} needs labels, but these images have none: {self.unlabelled}. Use "
                "images with one sub-folder for each class, or arrays or a function with labels"
                f"{_tasks_without_labels()}."
            )

    def of_classes(self, logits: Any) -> Any:
        """Return the logits of the classes, (N, classes), from all logits (N, outputs).

        Several outputs, given as a dictionary, are returned as they are.
        """
        if self.outputs is None or isinstance(logits, dict):
            return logits
        return logits[:, list(self.outputs)]

    def with_labels(self, batches: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Any]]:
        """Yield the inputs and labels of batches; the labels may be the original's outputs."""
        for inputs, labels in batches:
            if self.reference is None:
                yield inputs, labels
            else:
                yield inputs, self.of_classes(self.reference(inputs))


@dataclass(frozen=True)
class Dataset:
    """Dataset in three splits: `train`, `validation` for all choices, and `test` only for reports.

    `own_calibration` are the user's own images for calibration, without labels.
    `validation_from` is the source of the validation images: `train`, `test` or `folder`.
    `reduced_to` is the shorter side in pixels to which larger images were reduced when they were
    stored. None means that no image was reduced.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    reduced_to: int | None = None
    validation_from: str = "train"
    own_calibration: Split | None = None

    @property
    def calibration(self) -> Split:
        """Images that show the inputs of layers and the ranges of int8. Their labels are unused."""
        return self.train if self.own_calibration is None else self.own_calibration

    def with_reference(self, original: Callable[[Any], Any]) -> "Dataset":
        """Return the dataset with the outputs of the original network in place of labels.

        `original` returns the outputs for a batch of inputs, (N, ...).
        """
        splits = {
            name: replace(getattr(self, name), reference=original)
            for name in ("train", "validation", "test")
        }
        return replace(self, **splits)


def open_dataset(folder: str | os.PathLike, splits: str | os.PathLike | None = None) -> Dataset:
    """Open the dataset that the `dataset` step stored in `folder`.

    `splits` is the folder that the `splits` step wrote for a network. By default, validation
    images are held out from the training images. Raises UserError if the folder is missing or does
    not match its index, or if `splits` belongs to another dataset.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no stored dataset. Create it with `snakemake --cores 1 {folder}`."
        )
    index = _read_index(folder / "dataset.json")
    outputs = tuple(index["outputs"]) if "outputs" in index else None
    splits_index = read_splits(splits, folder)
    sources = {
        part: replace(
            _open_split(folder, part, index, index["splits"][part]["images"], outputs),
            unlabelled=index.get(entry, ""),
        )
        for part, entry in UNLABELLED.items()
    }
    validation = ValidationSettings.model_validate(splits_index["validation"])
    if validation.folder is not None and splits is not None:
        sources["folder"] = replace(
            _open_split(Path(splits), "validation", splits_index, splits_index["images"], outputs),
            unlabelled=splits_index.get("unlabelled", ""),
        )
    rows = divide(
        len(sources["train"]),
        sources["test"].labels,
        validation,
        in_folder=len(sources.get("folder", ())),
    )
    calibration, calibration_index = None, splits_index.get("calibration", {})
    if calibration_index and splits is not None:
        count = calibration_index["images"]
        calibration = replace(
            _open_split(Path(splits), "calibration", calibration_index, count, outputs),
            unlabelled="they are calibration images",
        )
    indexes = (index, splits_index, calibration_index)
    reduced = [part["store_pixels"] for part in indexes if part.get("reduced")]
    return Dataset(
        name=index["name"],
        classes=tuple(index["classes"]),
        train=replace(sources["train"], rows=rows.train, name="train"),
        validation=_with_advice(
            replace(sources[rows.validation_from], rows=rows.validation, name="validation"),
            sources["test"],
        ),
        test=replace(sources["test"], rows=rows.test, name="test"),
        validation_from=rows.validation_from,
        own_calibration=calibration,
        reduced_to=reduced[0] if reduced else None,
    )


def _with_advice(validation: Split, test: Split) -> Split:
    """Add advice to the reason why validation images have no labels, if test images have some."""
    if not validation.unlabelled or test.unlabelled:
        return validation
    return replace(
        validation,
        unlabelled=f"{validation.unlabelled}. For labelled validation images, set "
        "`checkpoint.<model>.validation` to test images, `{from: test, images: 500}`, or to your "
        "own folder, `{folder: path}`",
    )


def _tasks_without_labels() -> str:
    """Return advice on the tasks that need no labels, to continue a sentence; empty if none."""
    names = [name for name, task in TASKS.usable().items() if not task.needs_labels]
    advice = ", or set `checkpoint.<model>.task` to a task that needs no labels: "
    return f"{advice}{', '.join(names)}" if names else ""


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    try:
        valid = all(isinstance(index["splits"][part]["images"], int) for part in ("train", "test"))
        valid = valid and {"name", "classes"} <= index.keys()
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise UserError(
            f"{path}: not the index of a stored dataset. Delete {path.parent} and run the same "
            "command again to store the dataset again."
        )
    return index


def _open_split(
    folder: Path,
    part: str,
    index: dict[str, Any],
    expected: int,
    outputs: tuple[int, ...] | None,
) -> Split:
    """Open all images of a stored part, in the format that the index names."""
    images = _FORMS[index.get("form", "arrays")](folder, part, index)
    labels = _load(folder / f"{part}_labels.npy").astype(np.int64)
    if not len(images) == len(labels) == expected:
        raise UserError(
            f"{folder}: the {part} split has {len(images)} images and {len(labels)} labels, but "
            f"its index says {expected}. Delete the folder and run the same command again."
        )
    return Split(images, labels, np.arange(len(labels)), outputs)


def require_images_match(data: Dataset, spec: NetworkSpec) -> None:
    """Raise UserError if a network cannot take the images of a dataset, or lacks its outputs.

    This is the case if the network needs another number of channels than 1 or 3 or larger images
    than were stored, or if `dataset.<name>.outputs` names an output that it does not have.
    """
    outputs, channels = data.test.outputs, spec.input_shape[0]
    if outputs is not None and max(outputs) >= spec.num_classes:
        raise UserError(
            f"dataset.{data.name}.outputs: has output {max(outputs)}, but the network {spec.name} "
            f"has outputs 0 to {spec.num_classes - 1}. Correct the mapping."
        )
    if spec.forms:
        require_arrays_match(data.train.images, data.name, spec)
        return
    if isinstance(data.train.images, InputArray):
        _require_shape(data.train.images, data.name, spec)
        return
    if channels not in (1, 3):
        raise UserError(
            f"the network {spec.name} needs {channels} channels, but images of the dataset "
            f"{data.name} can only be read with 1 (grayscale) or 3 (color). Use another network."
        )
    needed = spec.resize or min(spec.input_shape[1:])
    if data.reduced_to is not None and data.reduced_to < needed:
        raise UserError(
            f"dataset.{data.name}.store_pixels: images were stored with a shorter side of "
            f"{data.reduced_to} pixels, but the network {spec.name} needs {needed}. Set it to at "
            f"least {needed}."
        )


def _require_shape(inputs: InputArray, dataset: str, spec: NetworkSpec) -> None:
    if isinstance(inputs.values, dict):
        raise UserError(
            f"dataset.{dataset}: has several inputs, {', '.join(map(repr, inputs.values))}, but "
            f"the network {spec.name} has one. Store a single array beside `labels`."
        )
    shape = inputs.values.shape[1:]
    if shape != tuple(spec.input_shape):
        raise UserError(
            f"dataset.{dataset}: a sample has the shape {shape}, but the network {spec.name} needs "
            f"{tuple(spec.input_shape)}. Arrays are used as they are: correct the arrays, or "
            "`input_shape` of the network."
        )


def _open_arrays(folder: Path, part: str, index: dict[str, Any]) -> Images:
    return _load(folder / f"{part}_images.npy", mmap_mode="r")


def _open_stored(folder: Path, part: str, index: dict[str, Any]) -> Images:
    path = folder / f"{part}_pixels.npy"
    pixels, sizes = _load(path, mmap_mode="r"), _load(folder / f"{part}_sizes.npy")
    sizes = sizes.astype(np.int64)
    expected = 3 * sizes.prod(1).sum()
    if len(pixels) != expected:
        raise UserError(
            f"{path}: has {len(pixels)} bytes, but its images need {expected}. Delete {folder} and "
            "run the same command again."
        )
    return StoredImages(pixels, sizes)


def _open_inputs(folder: Path, part: str, index: dict[str, Any]) -> Images:
    names = index.get("inputs")
    if names is None:
        return InputArray(_load(folder / f"{part}_inputs.npy", mmap_mode="r"))
    return InputArray(
        {
            name: _load(folder / f"{part}_input{number}.npy", mmap_mode="r")
            for number, name in enumerate(names)
        }
    )


def _open_files(folder: Path, part: str, index: dict[str, Any]) -> Images:
    files = [(name, length) for name, length in read_json(folder / f"{part}_files.json")]
    return ImageFiles(Path(index["folders"][part]), files, index["store_pixels"])


# Functions that open images, by the format in the index: arrays (N, H, W, C) of known datasets,
# decoded images of different sizes, paths of image files, or arrays that networks take as they are.
_FORMS: dict[str, Callable[[Path, str, dict[str, Any]], Images]] = {
    "arrays": _open_arrays,
    "pixels": _open_stored,
    "files": _open_files,
    "inputs": _open_inputs,
}


def _load(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode, allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}). Delete {path.parent} and run the "
            "same command again to store the dataset again."
        ) from error
