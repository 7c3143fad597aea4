"""Known datasets by name, and functions to store a dataset."""

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
    """Dataset that can be downloaded by name: its classes in label order, and its download."""

    classes: tuple[str, ...]
    obtain: Callable[[Path, Say], Arrays]


DATASETS = {
    "cifar10": KnownDataset(CIFAR10_CLASSES, obtain_cifar10),
    "fashion_mnist": KnownDataset(FASHION_MNIST_CLASSES, obtain_fashion_mnist),
}

# Entries of `dataset.json` that say why the images of a part have no labels.
UNLABELLED = {"train": "unlabelled", "test": "unlabelled_test"}


def store_dataset(
    folder: Path,
    name: str,
    classes: Iterable[str],
    arrays: Arrays,
    outputs: Iterable[int] | None = None,
) -> None:
    """Store a dataset in the format that `lowrank.data.datasets.open_dataset` reads.

    Writes the four arrays as .npy files, and `dataset.json`. The content depends only on the data:
    the same data gives the same bytes. The folder is written atomically and replaces a dataset
    that is already stored there.

    Parameters
    ----------
    folder : Path
        Folder to write.
    name : str
        Name of the dataset.
    classes : iterable of str
        Names of its classes, in label order.
    arrays : dict of arrays
        `{train,test}_images` (N, H, W, C) and `{train,test}_labels` (N,), uint8.
    outputs : iterable of int, optional
        Index of the network output for each class. None means that the outputs are the classes.

    Raises
    ------
    UserError
        If `folder` contains other files, the disk is full, or the folder cannot be written.
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
    """Yield a new folder to fill, which replaces `folder` when the block succeeds.

    Raises UserError if `folder` contains files but no file named `index`, because it was not
    stored by lowrank then; if the disk is full; or if the folder cannot be written. Nothing is
    changed in these cases.
    """
    refuse_foreign_folder(folder, index)
    # Keep a symbolic link, for example to another disk, and replace its target.
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as temporary:
            # Use a folder inside it, because other users have no access to the temporary folder.
            new = Path(temporary, "new")
            new.mkdir()
            yield new
            _replace_folder(new, folder, backup=Path(temporary, "old"))
    except Exception as error:
        if write_error := cannot_write(folder, error):
            raise write_error from error
        raise


def write_index(
    folder: Path,
    name: str,
    classes: Iterable[str],
    outputs: Iterable[int] | None,
    entries: dict,
) -> None:
    """Write `dataset.json`: the entries of all formats, then the other `entries`."""
    mapping = {} if outputs is None else {"outputs": list(outputs)}
    index = {"name": name, "classes": list(classes), **mapping, **entries}
    write_json(folder / "dataset.json", index)


def refuse_foreign_folder(folder: Path, index: str = "dataset.json") -> None:
    """Raise UserError if `folder` exists, is not empty and has no file named `index`.

    A stored dataset replaces the complete folder, and a mistake must not delete other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is a file, expected a folder for a dataset. Choose another folder, or move "
            "the file away."
        )
    if any(folder.iterdir()) and not (folder / index).exists():
        raise UserError(
            f"{folder}: holds files but no {index}, so it is not a stored dataset and is not "
            "replaced. Choose another folder, or empty this one."
        )


def _replace_folder(new: Path, folder: Path, backup: Path) -> None:
    if folder.exists():
        folder.rename(backup)
    try:
        new.rename(folder)
    except OSError:
        if backup.exists():
            backup.rename(folder)
        raise


def write_array(path: Path, array: NDArray) -> None:
    """Write a contiguous array like numpy.save, but keep the error number of a full disk."""
    write_chunks(path, array.dtype, array.shape, [array])


def write_chunks(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], chunks: Iterable[NDArray]
) -> None:
    """Write an array (N, ...) like `write_array` from contiguous parts that follow one another."""
    with array_writer(path, dtype, shape) as write:
        for chunk in chunks:
            write(chunk)


@contextlib.contextmanager
def array_writer(
    path: Path, dtype: np.dtype, shape: tuple[int, ...]
) -> Iterator[Callable[[NDArray], object]]:
    """Yield a function that writes the next contiguous part of an array (N, ...)."""
    descr = np.lib.format.dtype_to_descr(dtype)
    with path.open("wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda chunk: file.write(chunk.data)
        file.flush()
        os.fsync(file.fileno())
