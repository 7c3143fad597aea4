"""Labelled images that memory-map, and their division into training, validation and test."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank.errors import UserError
from lowrank.files import read_json
from lowrank.networks.registry import NetworkSpec
from lowrank.training.images import ImageFiles, Images, StoredImages

# Changing either changes which images choices are made on, and so every result.
VALIDATION_IMAGES = 5_000
VALIDATION_SEED = 0

Logits = TypeVar("Logits", Tensor, NDArray)


@dataclass(frozen=True)
class Split:
    """Images of bytes and labels (N,), with the rows that belong to this split.

    `images` is an array (N, H, W, C), or gives one image (H, W, C) at a time. `outputs` holds the
    output of the network that stands for each class; None: the outputs are the classes.
    """

    images: Images
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    outputs: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, count: int, seed: int = 0) -> "Split":
        """So many images, drawn without order by `seed` alone; all where it has no more."""
        rows = np.random.default_rng(seed).permutation(self.rows)[:count]
        return replace(self, rows=np.sort(rows))

    def of_classes(self, logits: Logits) -> Logits:
        """Restrict logits (N, outputs) of the network to those of the classes, (N, classes)."""
        return logits if self.outputs is None else logits[:, list(self.outputs)]


@dataclass(frozen=True)
class Dataset:
    """`train` and `validation` divide the training images; `test` is only ever reported.

    `reduced_to` is the shorter side in pixels to which larger images were reduced when they were
    stored; None: no image was that large.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    reduced_to: int | None = None


def open_dataset(folder: str | os.PathLike) -> Dataset:
    """Open the dataset that the `dataset` step stored in `folder`.

    Raises UserError when the folder is missing or does not hold what its index says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no dataset is stored here. Build it with `snakemake --cores 1 {folder}`."
        )
    index = read_json(folder / "dataset.json")
    open_images = _FORMS[index.get("form", "arrays")]
    outputs = tuple(index["outputs"]) if "outputs" in index else None
    whole = {}
    for part in ("train", "test"):
        images = open_images(folder, part, index)
        labels = _load(folder / f"{part}_labels.npy").astype(np.int64)
        expected = index["splits"][part]["images"]
        if not len(images) == len(labels) == expected:
            raise UserError(
                f"{folder}: the {part} split holds {len(images)} images and {len(labels)} labels, "
                f"its index says {expected}. Delete the folder and run the same command again."
            )
        whole[part] = Split(images, labels, np.arange(len(labels)), outputs)
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(whole["train"]))
    held_out = min(VALIDATION_IMAGES, max(1, len(order) // 10))
    return Dataset(
        name=index["name"],
        classes=tuple(index["classes"]),
        train=replace(whole["train"], rows=np.sort(order[held_out:])),
        validation=replace(whole["train"], rows=np.sort(order[:held_out])),
        test=whole["test"],
        reduced_to=index["store_pixels"] if index.get("reduced") else None,
    )


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
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}). Delete {path.parent} and run the "
            "same command again; the data will be stored anew."
        ) from error
