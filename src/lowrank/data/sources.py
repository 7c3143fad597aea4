"""The datasets that are known by name, and how a dataset is stored."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.data.cifar10 import CIFAR10_CLASSES, obtain_cifar10
from lowrank.data.fashion_mnist import FASHION_MNIST_CLASSES, obtain_fashion_mnist
from lowrank.data.obtaining import Arrays, Say, sha256_of_array
from lowrank.errors import UserError
from lowrank.files import cannot_write, write_json
from lowrank.temporary import temporary_folder


@dataclass(frozen=True)
class KnownDataset:
    """A dataset that can be obtained by name: its classes in label order, and how to get it."""

    classes: tuple[str, ...]
    obtain: Callable[[Path, Say], Arrays]


DATASETS = {
    "cifar10": KnownDataset(CIFAR10_CLASSES, obtain_cifar10),
    "fashion_mnist": KnownDataset(FASHION_MNIST_CLASSES, obtain_fashion_mnist),
}


def store_dataset(
    folder: Path,
    name: str,
    classes: Iterable[str],
    arrays: Arrays,
    outputs: Iterable[int] | None = None,
) -> None:
    """Store a dataset as `lowrank.data.datasets.open_dataset` reads it.

    Writes the four arrays as .npy files and `dataset.json`, which depends on nothing but the
    data: the same data gives the same bytes. The folder appears whole or not at all, and takes
    the place of a dataset that is stored there already.

    Parameters
    ----------
    folder : Path
        Where to store it.
    name : str
        The dataset's name.
    classes : iterable of str
        The names of its classes, in label order.
    arrays : dict of arrays
        `{train,test}_images` (N, H, W, C) and `{train,test}_labels` (N,), uint8.
    outputs : iterable of int, optional
        The output of the network for each class; None: its outputs are the classes.

    Raises
    ------
    UserError
        When `folder` holds something else, the disk is full or the place cannot be written.
    """
    arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    splits = {
        split: {
            "images": len(arrays[f"{split}_images"]),
            "sha256": {
                part: sha256_of_array(arrays[f"{split}_{part}"]) for part in ("images", "labels")
            },
        }
        for split in ("train", "test")
    }
    with replaced_folder(folder) as new:
        for key, array in arrays.items():
            write_array(new / f"{key}.npy", array)
        write_index(new, name, classes, outputs, {"splits": splits})


@contextlib.contextmanager
def replaced_folder(folder: Path, index: str = "dataset.json") -> Iterator[Path]:
    """Yield a new folder to fill; it takes the place of `folder` when the block succeeds.

    Raises UserError when `folder` holds something else than was stored there before, which a file
    named `index` shows, the disk is full or the place cannot be written; then everything is as it
    was.
    """
    refuse_foreign_folder(folder, index)
    # A link to another disk stays: what it points to is replaced.
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as beside:
            # A folder inside it, because the temporary one is closed to other users.
            new = Path(beside, "new")
            new.mkdir()
            yield new
            _swap_in(new, folder, aside=Path(beside, "old"))
    except Exception as error:
        if told := cannot_write(folder, error):
            raise told from error
        raise


def write_index(
    folder: Path,
    name: str,
    classes: Iterable[str],
    outputs: Iterable[int] | None,
    rest: dict,
) -> None:
    """Write `dataset.json`: what every form of a stored dataset says, then the rest."""
    mapping = {} if outputs is None else {"outputs": list(outputs)}
    index = {"name": name, "classes": list(classes), **mapping, **rest}
    write_json(folder / "dataset.json", index)


def refuse_foreign_folder(folder: Path, index: str = "dataset.json") -> None:
    """Raise UserError when `folder` exists, is not empty and holds no file named `index`.

    What is stored takes the place of the whole folder: a slip of the hand must not delete
    someone's files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is a file, where a folder for a dataset was expected. Name another "
            "folder, or move the file away."
        )
    if any(folder.iterdir()) and not (folder / index).exists():
        raise UserError(
            f"{folder}: holds files but no {index}, so it is not a stored dataset and is "
            "not replaced. Name another folder, or empty this one."
        )


def _swap_in(new: Path, folder: Path, aside: Path) -> None:
    if folder.exists():
        folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise


def write_array(path: Path, array: NDArray) -> None:
    """Write what numpy.save writes, which would not tell a full disk from other failures."""
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())
