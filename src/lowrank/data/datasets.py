"""Labelled images that memory-map, and their division into training, validation and test."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank.config.checkpoint import ValidationSettings
from lowrank.data.images import ImageFiles, Images, StoredImages
from lowrank.data.splits import divide, read_splits
from lowrank.errors import UserError
from lowrank.files import read_json
from lowrank.zoo.registry import NetworkSpec

Logits = TypeVar("Logits", Tensor, NDArray)


@dataclass(frozen=True)
class Split:
    """Images of bytes and labels (N,), with the rows that belong to this split.

    `images` is an array (N, H, W, C), or gives one image (H, W, C) at a time. `outputs` holds the
    output of the network that stands for each class; None: the outputs are the classes.
    `unlabelled` says why the labels mean nothing; empty: they are the images' classes.
    """

    images: Images
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    outputs: tuple[int, ...] | None = None
    unlabelled: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, count: int, seed: int = 0) -> "Split":
        """So many images, drawn without order by `seed` alone; all where it has no more."""
        rows = np.random.default_rng(seed).permutation(self.rows)[:count]
        return replace(self, rows=np.sort(rows))

    def require_labels(self, purpose: str) -> None:
        """Raise UserError where the images' classes are not known, which `purpose` needs."""
        if self.unlabelled:
            raise UserError(
                f"{purpose} needs labels, and these images have none: {self.unlabelled}."
            )

    def of_classes(self, logits: Logits) -> Logits:
        """Restrict logits (N, outputs) of the network to those of the classes, (N, classes)."""
        return logits if self.outputs is None else logits[:, list(self.outputs)]


@dataclass(frozen=True)
class Dataset:
    """`validation` is what choices are made on; `test` is only ever reported.

    `validation_from` says where its images come from: `train`, `test` or `folder`.
    `reduced_to` is the shorter side in pixels to which larger images were reduced when they were
    stored; None: no image was that large.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    reduced_to: int | None = None
    validation_from: str = "train"


def open_dataset(folder: str | os.PathLike, splits: str | os.PathLike | None = None) -> Dataset:
    """Open the dataset that the `dataset` step stored in `folder`.

    `splits` is what the `splits` step wrote for a network; by default, validation images are held
    out of the training images. Raises UserError when the folder is missing, does not hold what its
    index says, or `splits` divides another dataset.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no dataset is stored here. Build it with `snakemake --cores 1 {folder}`."
        )
    index = _read_index(folder / "dataset.json")
    outputs = tuple(index["outputs"]) if "outputs" in index else None
    chosen = read_splits(splits, folder)
    whole = {
        part: _open_split(folder, part, index, index["splits"][part]["images"], outputs)
        for part in ("train", "test")
    }
    if unlabelled := index.get("unlabelled", ""):
        whole["train"] = replace(whole["train"], unlabelled=unlabelled)
    validation = ValidationSettings.model_validate(chosen["validation"])
    if validation.folder is not None:
        whole["folder"] = _open_split(Path(splits), "validation", chosen, chosen["images"], outputs)
    rows = divide(
        len(whole["train"]),
        whole["test"].labels,
        validation,
        in_folder=len(whole.get("folder", ())),
    )
    reduced = index.get("reduced") or chosen.get("reduced")
    return Dataset(
        name=index["name"],
        classes=tuple(index["classes"]),
        train=replace(whole["train"], rows=rows.train),
        validation=replace(whole[rows.validation_from], rows=rows.validation),
        test=replace(whole["test"], rows=rows.test),
        validation_from=rows.validation_from,
        reduced_to=(index if index.get("reduced") else chosen)["store_pixels"] if reduced else None,
    )


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    try:
        whole = all(isinstance(index["splits"][part]["images"], int) for part in ("train", "test"))
        whole = whole and {"name", "classes"} <= index.keys()
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            f"{path}: not the index of a stored dataset. Delete {path.parent} and run the same "
            "command again; the data are then stored again."
        )
    return index


def _open_split(
    folder: Path,
    part: str,
    index: dict[str, Any],
    expected: int,
    outputs: tuple[int, ...] | None,
) -> Split:
    """All images of a stored part, which the index says how to open."""
    images = _FORMS[index.get("form", "arrays")](folder, part, index)
    labels = _load(folder / f"{part}_labels.npy").astype(np.int64)
    if not len(images) == len(labels) == expected:
        raise UserError(
            f"{folder}: the {part} split holds {len(images)} images and {len(labels)} labels, "
            f"its index says {expected}. Delete the folder and run the same command again."
        )
    return Split(images, labels, np.arange(len(labels)), outputs)


def require_match(data: Dataset, spec: NetworkSpec) -> None:
    """Raise UserError where a network cannot be trained or measured on a dataset.

    Because their classes differ, the network takes another number of channels than 1 or 3, or
    larger images than were stored.
    """
    outputs, channels = data.test.outputs, spec.input_shape[0]
    if outputs is None and len(data.classes) != spec.num_classes:
        raise UserError(
            f"the dataset {data.name} has {len(data.classes)} classes, the network {spec.name} "
            f"tells {spec.num_classes} apart. Take a network for these classes, or say with "
            f"`dataset.{data.name}.outputs` which of its outputs stands for which class."
        )
    if outputs is not None and max(outputs) >= spec.num_classes:
        raise UserError(
            f"dataset.{data.name}.outputs: names output {max(outputs)}, but the outputs of the "
            f"network {spec.name} are 0 to {spec.num_classes - 1}. Correct the mapping."
        )
    if channels not in (1, 3):
        raise UserError(
            f"the network {spec.name} takes {channels} channels; images of the dataset "
            f"{data.name} can be given as 1 (grey) or 3 (colour)."
        )
    needed = spec.resize or min(spec.input_shape[1:])
    if data.reduced_to is not None and data.reduced_to < needed:
        raise UserError(
            f"dataset.{data.name}.store_pixels: images were reduced to a shorter side of "
            f"{data.reduced_to} pixels when they were stored, and the network {spec.name} takes "
            f"{needed}. Set it to at least {needed}."
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
            f"{path}: holds {len(pixels)} bytes, its images take {expected}. Delete {folder} and "
            "run the same command again."
        )
    return StoredImages(pixels, sizes)


def _open_files(folder: Path, part: str, index: dict[str, Any]) -> Images:
    files = [(name, length) for name, length in read_json(folder / f"{part}_files.json")]
    return ImageFiles(Path(index["folders"][part]), files, index["store_pixels"])


# How images are stored, by what the index says: arrays (N, H, W, C) of the datasets known by name,
# decoded images of many sizes, or only where the image files are.
_FORMS: dict[str, Callable[[Path, str, dict[str, Any]], Images]] = {
    "arrays": _open_arrays,
    "pixels": _open_stored,
    "files": _open_files,
}


def _load(path: Path, **options: str) -> NDArray:
    try:
        return np.load(path, allow_pickle=False, **options)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}). Delete {path.parent} and run the "
            "same command again; the data are then stored again."
        ) from error
