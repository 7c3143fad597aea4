"""Split the images of a dataset for a network into training, validation and test images.

Rank selection, searches, the int8 tolerance and early stopping use `validation`. `test` is only
used for reports. Published weights may have been trained on all training images, and an accuracy
drop that is measured on such images is too small for choices. So `checkpoint.<model>.validation`
sets the source of validation images: the training images (default), the test images, or a folder
of the user.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.data.folders import store_calibration_folder, store_validation_folder
from lowrank.data.obtaining import Say
from lowrank.data.sources import replaced_folder
from lowrank.errors import UserError
from lowrank.files import read_json, sha256_of, write_json

# Changing one of these changes the validation images, and therefore every result.
VALIDATION_IMAGES = 5_000
VALIDATION_SEED = 0

INDEX = "splits.json"


@dataclass(frozen=True)
class Rows:
    """Rows of each split in the images that it comes from.

    `validation_from` is the source of `validation`: `train`, `test` or `folder`. From a folder,
    all images are used.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    validation_from: str


def divide(
    train: int,
    test_labels: NDArray[np.int64],
    validation: ValidationSettings,
    *,
    in_folder: int = 0,
    place: str = "checkpoint.<model>.validation",
) -> Rows:
    """Split a dataset according to `validation`. The same arguments give the same rows.

    Parameters
    ----------
    train
        Number of training images.
    test_labels
        Class of each test image.
    validation
        Settings for the validation images.
    in_folder
        Number of images in the folder that `validation` names.
    place
        Parameter to name in messages.

    Raises
    ------
    UserError
        If no image is left for training or for the test split.
    """
    all_train, all_test = np.arange(train), np.arange(len(test_labels))
    if validation.folder is not None:
        return Rows(all_train, np.arange(in_folder), all_test, "folder")
    available = train if validation.from_ == "train" else len(test_labels)
    default = max(1, available // 10) if validation.from_ == "train" else max(1, available // 2)
    count = validation.images or min(VALIDATION_IMAGES, default)
    if count >= available:
        raise UserError(
            f"{place}.images: cannot hold out {count} images from the {validation.from_} split, "
            f"which has {available}: none would be left. Set it to at most {available - 1}, "
            "preferably to half of them."
        )
    if validation.from_ == "test":
        held_out = _balanced(test_labels, count)
        return Rows(all_train, held_out, np.setdiff1d(all_test, held_out), "test")
    order = np.random.default_rng(VALIDATION_SEED).permutation(train)
    return Rows(np.sort(order[count:]), np.sort(order[:count]), all_test, "train")


def write_splits(
    folder: Path,
    dataset: Path,
    validation: ValidationSettings,
    decoding: DatasetSettings,
    *,
    calibration: str | None = None,
    place: str,
    say: Say,
) -> None:
    """Write the folder that `lowrank.data.datasets.open_dataset` reads as `splits`.

    Parameters
    ----------
    folder
        Folder to write.
    dataset
        Folder of the stored dataset.
    validation
        Settings for the validation images.
    decoding
        Settings for reading images of the user's folders.
    calibration
        Folder of calibration images. None: calibration uses training images.
    place
        Entry of the network under `checkpoint`, which messages name.

    Raises
    ------
    UserError
        If the dataset cannot be split or a folder cannot be read.
    """
    index = read_json(dataset / "dataset.json")
    if validation.folder or calibration:
        _require_images(index, place)
    with replaced_folder(folder, INDEX) as new:
        document: dict[str, Any] = {
            "dataset": index["name"],
            "dataset_sha256": sha256_of(dataset / "dataset.json"),
            "validation": validation.to_document(),
        }
        if validation.folder is not None:
            document |= store_validation_folder(
                new,
                validation.folder,
                index["classes"],
                decoding,
                place=f"{place}.validation.folder",
                say=say,
            )
        labels = np.load(dataset / "test_labels.npy").astype(np.int64)
        train, at = index["splits"]["train"]["images"], f"{place}.validation"
        document["splits"] = _entries(
            divide(train, labels, validation, in_folder=document.get("images", 0), place=at)
        )
        if calibration is not None:
            document["calibration"] = store_calibration_folder(
                new, calibration, decoding, place=f"{place}.calibration", say=say
            )
        write_json(new / INDEX, document)


def _require_images(index: dict[str, Any], place: str) -> None:
    """Raise UserError if a dataset has arrays in place of images."""
    if index.get("form") == "inputs":
        raise UserError(
            f"{place}: the dataset {index['name']} has arrays, which are used as they are, so its "
            "network takes no folders of images. Remove `validation.folder` and `calibration`."
        )


def _entries(rows: Rows) -> dict[str, Any]:
    """Return the entries of the index that identify the images of each split."""
    return {
        name: {
            "images": len(split_rows),
            "sha256": hashlib.sha256(split_rows.tobytes()).hexdigest(),
        }
        for name, split_rows in (
            ("train", rows.train),
            ("validation", rows.validation),
            ("test", rows.test),
        )
    }


def read_splits(folder: str | os.PathLike | None, dataset: Path) -> dict[str, Any]:
    """Read the index that `write_splits` wrote, or return the default if there is no `folder`.

    Raises UserError if it belongs to another dataset, or if the dataset has changed since.
    """
    if not folder:
        return {"validation": {"from": "train"}}
    document = read_json(Path(folder) / INDEX)
    if document["dataset_sha256"] != sha256_of(dataset / "dataset.json"):
        raise UserError(
            f"{folder}: belongs to an earlier version of the dataset {document['dataset']}; "
            f"{dataset} has changed since. Delete {folder} and run the same command again."
        )
    return document


def _balanced(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the sorted rows of `count` images with the class proportions of all images.

    The number of images per class is its share of `count`, rounded with the largest remainder
    method so that the sum is exact. For equal remainders, the lower class comes first. The images
    of a class depend only on the seed.
    """
    generator = np.random.default_rng(VALIDATION_SEED)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = count * sizes / len(labels)
    counts = np.floor(shares).astype(int)
    missing = count - counts.sum()
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    rows = [
        generator.permutation(np.flatnonzero(labels == label))[:class_count]
        for label, class_count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(rows))
