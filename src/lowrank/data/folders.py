"""Store folders of images as datasets."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.dataset import DatasetSettings
from lowrank.core.background import in_background
from lowrank.core.progress import Progress
from lowrank.data.folder_scan import (
    ImageFolder,
    difference,
    first_names,
    require_images,
    require_same,
    scan,
)
from lowrank.data.held_out import rows_held_out
from lowrank.data.images import decode, read_file, size_of, stored_size
from lowrank.data.obtaining import Say, one_line, sha256_of_array
from lowrank.data.sources import UNLABELLED, replaced_folder, write_array, write_index
from lowrank.errors import UserError

# Label of an image without a known class.
NO_LABEL = -1

_GIB = 2**30
_REPORT_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class _ReadFile:
    """One file: its image, its length in bytes and its SHA-256, or why it is not readable."""

    name: str
    image: NDArray[np.uint8] | None = None
    length: int = 0
    sha256: str = ""
    unreadable: str = ""


def outputs_of(
    classes: tuple[str, ...], outputs: Mapping[str, int] | None, place: str
) -> tuple[int, ...] | None:
    """Return the outputs of a mapping in the order of the classes.

    Raises UserError if the names in the mapping differ from the classes.
    """
    if outputs is None:
        return None
    require_same(place, ("the dataset", set(classes)), ("the mapping", set(outputs)))
    return tuple(outputs[name] for name in classes)


def store_folders(output: Path, name: str, settings: DatasetSettings, say: Say) -> None:
    """Store folders of images in the format that `lowrank.data.datasets.open_dataset` reads.

    Without `settings.validation`, test images are held out of the training images. A folder without
    sub-folders has images without labels. If the classes of both folders differ, the training
    images are used without labels.

    Every image is decoded once to check it. If all images fit into `settings.cache_gib`, the
    decoded images are stored. Otherwise the index stores the paths of the files. Both give the
    same images.

    Raises
    ------
    UserError
        If a folder or a class is missing or empty, if a file is not a readable image and
        `settings.skip_unreadable` is not set, or if `output` cannot be written.
    """
    place = f"dataset.{name}"
    parts, places = _scanned(settings, place, say)
    classes = parts["test"].classes or parts["train"].classes
    unlabelled = _without_labels(parts)
    # Continue without labels. Steps that need labels raise an error with the reason.
    for key in unlabelled:
        parts[key] = replace(parts[key], has_labels=False)
    lines = [
        f"{places[key]}: images are used without labels: {reason}"
        for key, reason in unlabelled.items()
    ]
    warning = "warning: " if classes else ""
    for line in dict.fromkeys(lines):
        say(f"{warning}{line}")
    outputs = outputs_of(classes, settings.outputs, f"{place}.outputs")
    decoded = _are_stored_decoded(parts.values(), settings, say)
    with replaced_folder(output) as new:
        stored = {
            key: _store_part(new, key, part, settings, places[key], say, decoded=decoded)
            for key, part in parts.items()
        }
        shared = _in_both(parts, {key: digests for key, (_, _, digests) in stored.items()})
        if shared:
            say(
                f"warning: {place}: {len(shared)} of {len(parts['test'].files)} images in "
                f"{parts['test'].root} are also training images (identical files): "
                f"{first_names(shared)}. Accuracy on them is too high. Remove one of each two."
            )
        entries = _format_entries(parts, settings, decoded=decoded) | {
            "reduced": any(reduced for _, reduced, _ in stored.values()),
            "splits": {key: split for key, (split, _, _) in stored.items()},
            **({"in_both": len(shared)} if shared else {}),
            **{UNLABELLED[key]: reason for key, reason in unlabelled.items()},
        }
        write_index(new, name, classes, outputs, entries)


def _scanned(
    settings: DatasetSettings, place: str, say: Say
) -> tuple[dict[str, ImageFolder], dict[str, str]]:
    """Return the training and the test images, and the parameter that names each."""
    if settings.train is None:
        raise UserError(f"{place}: kind imagefolder needs `train`.")
    train = scan(Path(settings.train), f"{place}.train")
    if settings.validation is not None:
        test = scan(Path(settings.validation), f"{place}.validation")
        return {"train": train, "test": test}, {
            "train": f"{place}.train",
            "test": f"{place}.validation",
        }
    held_out = rows_held_out(train.labels, f"{place}.train: {train.root}")
    say(
        f"{place}: without `validation`, {len(held_out)} of {len(train.files)} images in "
        f"{train.root} are held out as test images"
    )
    remaining = sorted({*range(len(train.files))} - {*held_out.tolist()})
    parts = {"train": train.part(remaining), "test": train.part(held_out.tolist())}
    return parts, dict.fromkeys(parts, f"{place}.train")


def _without_labels(parts: Mapping[str, ImageFolder]) -> dict[str, str]:
    """Return for each part without labels why it has none."""
    reasons = {key: _no_classes(part) for key, part in parts.items() if not part.has_labels}
    message = difference(*((str(part.root), set(part.classes)) for part in parts.values()))
    return reasons or ({"train": f"{parts['train'].root} {message}"} if message else {})


def _no_classes(part: ImageFolder) -> str:
    return f"{part.root} has no sub-folders for its classes"


def store_validation_folder(
    output: Path,
    folder: str,
    classes: Sequence[str],
    settings: DatasetSettings,
    *,
    place: str,
    say: Say,
) -> dict[str, Any]:
    """Store a user's validation images in `output`, next to the index of a network's splits.

    Returns the entries for that index. `classes` are the classes of the dataset. Images have no
    labels if the folder has no sub-folders or the dataset has no classes. Raises UserError in the
    same cases as `store_folders`, and if the classes of folder and dataset differ.
    """
    part = scan(Path(folder), place)
    if part.has_labels and classes:
        require_same(place, (folder, set(part.classes)), ("the dataset", set(classes)))
        dataset_labels = [list(classes).index(name) for name in part.classes]
        labels = tuple(dataset_labels[label] for label in part.labels)
        part, unlabelled = replace(part, classes=tuple(classes), labels=labels), ""
    else:
        unlabelled = "the dataset has no classes" if part.has_labels else _no_classes(part)
        part = replace(part, has_labels=False)
    decoded = _are_stored_decoded([part], settings, say)
    split, reduced, _ = _store_part(
        output, "validation", part, settings, place, say, decoded=decoded
    )
    entries = _format_entries({"validation": part}, settings, decoded=decoded)
    return entries | {
        "reduced": reduced,
        **split,
        **({"unlabelled": unlabelled} if unlabelled else {}),
    }


def store_calibration_folder(
    output: Path, folder: str, settings: DatasetSettings, *, place: str, say: Say
) -> dict[str, Any]:
    """Store a user's calibration images in `output`, next to the index of a network's splits.

    Labels are not used. Returns the entries for that index. Raises UserError in the same cases as
    `store_folders`.
    """
    part = replace(scan(Path(folder), place), has_labels=False)
    decoded = _are_stored_decoded([part], settings, say)
    split, reduced, _ = _store_part(
        output, "calibration", part, settings, place, say, decoded=decoded
    )
    if split["images"] == 1:
        say(
            f"warning: {place}: {folder} has a single image. The inputs of layers and the ranges "
            "of int8 differ between images; some hundred images show them."
        )
    entries = _format_entries({"calibration": part}, settings, decoded=decoded)
    return {"folder": folder, **entries, "reduced": reduced, **split}


def _in_both(
    parts: Mapping[str, ImageFolder], digests: Mapping[str, list[tuple[bytes, str]]]
) -> list[str]:
    """Describe each file of `test` that is identical to a file of `train`, with both paths."""
    train = dict(digests["train"])
    return [
        f"{parts['test'].root / name} is {parts['train'].root / train[digest]}"
        for digest, name in digests["test"]
        if digest in train
    ]


def _format_entries(
    parts: Mapping[str, ImageFolder], settings: DatasetSettings, *, decoded: bool
) -> dict[str, Any]:
    """Return the entries of an index that describe how images are stored."""
    folders = {} if decoded else {"folders": {key: str(p.root) for key, p in parts.items()}}
    form = "pixels" if decoded else "files"
    return {"form": form, "store_pixels": settings.store_pixels, **folders}


def _are_stored_decoded(
    parts: Collection[ImageFolder], settings: DatasetSettings, say: Say
) -> bool:
    gib = sum(_decoded_bytes(part, settings) for part in parts) / _GIB
    decoded = gib <= settings.cache_gib
    say(
        f"{' and '.join(str(len(part.files)) for part in parts)} image files, "
        f"{gib:.2f} GiB when decoded: "
        + (
            "storing decoded images"
            if decoded
            else f"more than `cache_gib` {settings.cache_gib:g}, so images are read from the files"
        )
    )
    return decoded


def _decoded_bytes(part: ImageFolder, settings: DatasetSettings) -> int:
    """Return the bytes of all decoded images, from the sizes in file headers.

    A file with an unreadable header counts as 0 bytes.
    """

    def decoded_bytes(name: str) -> int:
        try:
            size = size_of(part.root / name)
        except Exception:  # Reported later, when the complete file is read.
            return 0
        height, width = stored_size(size, settings.store_pixels)
        return 3 * height * width

    total, progress = 0, Progress(len(part.files), "image sizes")
    for count in in_background(decoded_bytes, part.files, settings.threads):
        total += count
        progress.advance()
    return total


def _store_part(
    folder: Path,
    key: str,
    part: ImageFolder,
    settings: DatasetSettings,
    place: str,
    say: Say,
    *,
    decoded: bool,
) -> tuple[dict[str, Any], bool, list[tuple[bytes, str]]]:
    """Write one part.

    Returns the entries for the index, whether any image has the side `store_pixels` (so it may
    have been reduced), and for each file the start of its SHA-256 and its name. The start of the
    SHA-256 is sufficient to find identical files.
    """
    labels, sizes, files, unreadable, digests = [], [], [], [], []
    listing, reduced, last_report = hashlib.sha256(), False, time.monotonic()
    with _pixels_file(folder / f"{key}_pixels.npy" if decoded else None) as append:
        for number, (file, label) in enumerate(
            zip(_read_files(part, settings, place), part.labels, strict=True), 1
        ):
            if time.monotonic() - last_report > _REPORT_EVERY_SECONDS:
                last_report = time.monotonic()
                say(f"{key}: read {number} of {len(part.files)} files")
            if file.image is None:
                unreadable.append(file.unreadable)
                continue
            labels.append(label)
            sizes.append(file.image.shape[:2])
            files.append((file.name, file.length))
            # The format of `sha256sum`.
            listing.update(f"{file.sha256}  {file.name}\n".encode())
            digests.append((bytes.fromhex(file.sha256[:16]), file.name))
            reduced |= min(file.image.shape[:2]) == settings.store_pixels
            append(file.image)
    if unreadable:
        say(f"{key}: skipped {len(unreadable)} unreadable files: " + "; ".join(unreadable))
    if part.has_labels:
        counts = np.bincount(labels, minlength=len(part.classes))
        require_images(place, part.root, dict(zip(part.classes, counts, strict=True)))
    label_array = np.array(labels if part.has_labels else [NO_LABEL] * len(labels), np.int32)
    write_array(folder / f"{key}_labels.npy", label_array)
    if decoded:
        write_array(folder / f"{key}_sizes.npy", np.array(sizes, np.int32))
    else:
        (folder / f"{key}_files.json").write_text(json.dumps(files))
    split = {
        "images": len(labels),
        "sha256": {"images": listing.hexdigest(), "labels": sha256_of_array(label_array)},
    }
    return split, reduced, digests


def _read_files(part: ImageFolder, settings: DatasetSettings, place: str) -> Iterator[_ReadFile]:
    """Yield the files of a part. Raises UserError for an unreadable file unless it is skipped."""

    def read(name: str) -> _ReadFile:
        path = part.root / name
        try:
            content = read_file(path)
            image = decode(content, settings.store_pixels)
        except Exception as error:  # Pillow raises many types of errors for damaged files.
            return _ReadFile(name, unreadable=f"{path} ({one_line(str(error))})")
        return _ReadFile(name, image, len(content), hashlib.sha256(content).hexdigest())

    for file in in_background(read, part.files, settings.threads):
        if file.image is None and not settings.skip_unreadable:
            raise UserError(
                f"{place}: {file.unreadable}: cannot be read as an image. Replace or remove the "
                "file, or set `skip_unreadable: true` to skip such files."
            )
        yield file


@contextmanager
def _pixels_file(path: Path | None) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that appends an image to a flat .npy file.

    If `path` is None, the function does nothing.
    """
    length = 0

    def append(image: NDArray[np.uint8]) -> None:
        nonlocal length
        file.write(image.data)
        length += image.size

    def write_header() -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)

    if path is None:
        yield lambda image: None
        return
    with path.open("wb") as file:
        write_header()
        yield append
        # The length of the header does not change: NumPy reserves space for the first dimension.
        file.seek(0)
        write_header()
        file.flush()
        os.fsync(file.fileno())
