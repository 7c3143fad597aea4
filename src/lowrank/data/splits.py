"""Which images choices are made on, and which are reported: a network's division of its dataset.

Ranks, searches, the tolerance of int8 and early stopping look at `validation`; `test` is only ever
reported. Weights from elsewhere may have been trained on every training image, and a choice made
on those sees no loss. `checkpoint.<model>.validation` therefore says where validation images come
from: the training images (default), the test images, or a folder of the user's own.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.data.folders import store_validation_folder
from lowrank.data.obtaining import Say
from lowrank.data.sources import replaced_folder
from lowrank.errors import UserError
from lowrank.files import read_json, sha256_of, write_json

# Changing either changes which images choices are made on, and so every result.
VALIDATION_IMAGES = 5_000
VALIDATION_SEED = 0

INDEX = "splits.json"

# How far validation accuracy may be above test accuracy without a warning: so many standard errors
# of the difference, and a margin for two sets of images that are not equally hard.
GAP_STANDARD_ERRORS = 3.0
GAP_MARGIN_POINTS = 0.5


@dataclass(frozen=True)
class Rows:
    """The rows of each split, in the images that they come from.

    `validation_from` is `train`, `test` or `folder`; of a folder, every image.
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
    """Divide a dataset by `validation`. The same arguments give the same rows.

    Parameters
    ----------
    train
        How many training images there are.
    test_labels
        The class of each test image.
    in_folder
        How many images are in the folder that `validation` names.
    place
        The parameter to blame.

    Raises
    ------
    UserError
        When no image would be left to train on, or to report.
    """
    all_train, all_test = np.arange(train), np.arange(len(test_labels))
    if validation.folder is not None:
        return Rows(all_train, np.arange(in_folder), all_test, "folder")
    whole = train if validation.from_ == "train" else len(test_labels)
    default = max(1, whole // 10) if validation.from_ == "train" else max(1, whole // 2)
    count = validation.images or min(VALIDATION_IMAGES, default)
    if count >= whole:
        raise UserError(
            f"{place}.images: {count} images are to be held out of the {validation.from_} split, "
            f"which has {whole}; none would be left. Give at most {whole - 1}, better half of them."
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
    place: str,
    say: Say,
) -> None:
    """Write what `lowrank.data.datasets.open_dataset` takes as `splits`.

    `decoding` says how the images of a folder are read. `place` is the parameter to blame.
    Raises UserError where the dataset cannot be divided so, or the folder cannot be read.
    """
    index = read_json(dataset / "dataset.json")
    with replaced_folder(folder, INDEX) as new:
        document: dict[str, Any] = {
            "dataset": index["name"],
            "dataset_sha256": sha256_of(dataset / "dataset.json"),
            "validation": validation.to_document(),
        }
        in_folder = 0
        if validation.folder is not None:
            document |= store_validation_folder(
                new, validation.folder, index["classes"], decoding, place=f"{place}.folder", say=say
            )
            in_folder = document["images"]
        elif validation.from_ == "train" and "unlabelled" in index:
            raise UserError(
                f"{place}: validation images would come from the training images, which have no "
                f"labels: {index['unlabelled']}. Take them from the test images, "
                "`validation: {from: test, images: 500}`, or name a folder of your own, "
                "`validation: {folder: path}`."
            )
        labels = np.load(dataset / "test_labels.npy").astype(np.int64)
        train = index["splits"]["train"]["images"]
        rows = divide(train, labels, validation, in_folder=in_folder, place=place)
        document["splits"] = {
            name: {"images": len(each), "sha256": hashlib.sha256(each.tobytes()).hexdigest()}
            for name, each in (
                ("train", rows.train),
                ("validation", rows.validation),
                ("test", rows.test),
            )
        }
        write_json(new / INDEX, document)


def read_splits(folder: str | os.PathLike | None, dataset: Path) -> dict[str, Any]:
    """Read what `write_splits` wrote; without a `folder`, the default of every dataset.

    Raises UserError where it was made for another dataset, or for another state of this one.
    """
    if not folder:
        return {"validation": {"from": "train"}}
    document = read_json(Path(folder) / INDEX)
    if document["dataset_sha256"] != sha256_of(dataset / "dataset.json"):
        raise UserError(
            f"{folder}: divides the dataset {document['dataset']} as it was stored before; "
            f"{dataset} has changed since. Delete {folder} and run the same command again."
        )
    return document


def gap_warning(
    accuracy: Mapping[str, float], *, validation: int, test: int, validation_from: str
) -> str:
    """Say why choices on the validation images cannot be trusted; empty where they can be.

    Top-1 on validation may be above top-1 on the test images by `GAP_STANDARD_ERRORS` standard
    errors of the difference of two binomial shares (pooled), plus `GAP_MARGIN_POINTS`.

    Parameters
    ----------
    accuracy
        `validation` and `test`, in percent.
    validation, test
        How many images each was measured on.
    validation_from
        `train`, `test` or `folder`.
    """
    gap = accuracy["validation"] - accuracy["test"]
    if gap <= explained_gap(accuracy, validation=validation, test=test):
        return ""
    found = (
        f"validation accuracy is {accuracy['validation']:.2f} % on {validation} images and test "
        f"accuracy {accuracy['test']:.2f} % on {test}: {gap:.2f} points apart, where chance and a "
        f"margin explain {explained_gap(accuracy, validation=validation, test=test):.2f}. "
    )
    if validation_from == "train":
        return found + (
            "The weights were probably trained on the validation images, which are held out of "
            "the training split, and every loss measured there is too small. Make choices on other "
            "images: `validation: {from: test, images: "
            f"{max(1, test // 2)}}}` or `validation: {{folder: path}}` under this network in "
            "`checkpoint`."
        )
    return found + (
        "The weights were probably trained on the validation images, or these are easier than the "
        "test images; losses measured there may be too small. Choose images for `validation` that "
        "are like the test images and were not trained on."
    )


def explained_gap(accuracy: Mapping[str, float], *, validation: int, test: int) -> float:
    """Points by which validation accuracy may be above test accuracy; see `gap_warning`."""
    pooled = (validation * accuracy["validation"] + test * accuracy["test"]) / (validation + test)
    variance = pooled * (100.0 - pooled) * (1 / validation + 1 / test)
    return GAP_STANDARD_ERRORS * math.sqrt(max(0.0, variance)) + GAP_MARGIN_POINTS


def _balanced(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of `count` images that have the proportions of all classes, sorted.

    Each class gives its share of `count`, rounded so that the sum is exact (largest remainders;
    of equal ones the lower class first). Within a class the seed decides alone.
    """
    random = np.random.default_rng(VALIDATION_SEED)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = count * sizes / len(labels)
    quota = np.floor(shares).astype(int)
    missing = count - quota.sum()
    quota[np.argsort(quota - shares, kind="stable")[:missing]] += 1
    taken = [
        random.permutation(np.flatnonzero(labels == label))[:wanted]
        for label, wanted in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(taken))
