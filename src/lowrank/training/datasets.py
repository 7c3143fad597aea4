"""Labelled images that memory-map, and their division into training, validation and test."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import UserError
from lowrank.files import read_json

# Changing either changes which images choices are made on, and so every result.
VALIDATION_IMAGES = 5_000
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as bytes and labels (N,), with the rows that belong to this split."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> "Split":
        """The first `count` images of the split (all of them when it has fewer)."""
        return Split(self.images, self.labels, self.rows[:count])


@dataclass(frozen=True)
class Dataset:
    """`train` and `validation` divide the training images; `test` is only ever reported."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def open_dataset(folder: str | os.PathLike) -> Dataset:
    """Memory-map the dataset that the `dataset` step stored in `folder`.

    Raises UserError when the folder is missing or does not hold what its index says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no dataset is stored here. Build it with `snakemake --cores 1 {folder}`."
        )
    index = read_json(folder / "dataset.json")
    arrays = {}
    for part in ("train", "test"):
        images = _load(folder / f"{part}_images.npy", mmap_mode="r")
        labels = _load(folder / f"{part}_labels.npy").astype(np.int64)
        expected = index["splits"][part]["images"]
        if not len(images) == len(labels) == expected:
            raise UserError(
                f"{folder}: the {part} split holds {len(images)} images and {len(labels)} labels, "
                f"its index says {expected}. Delete the folder and run the same command again."
            )
        arrays[part] = images, labels
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(arrays["train"][0]))
    held_out = min(VALIDATION_IMAGES, len(order) // 10)
    return Dataset(
        name=index["name"],
        classes=tuple(index["classes"]),
        train=Split(*arrays["train"], np.sort(order[held_out:])),
        validation=Split(*arrays["train"], np.sort(order[:held_out])),
        test=Split(*arrays["test"], np.arange(len(arrays["test"][0]))),
    )


def _load(path: Path, **options: str) -> NDArray:
    try:
        return np.load(path, allow_pickle=False, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}). Delete {path.parent} and run the "
            "same command again; the data will be stored anew."
        ) from error
