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
from lowrank.core.progress import Progress
from lowrank.data.background import in_background
from lowrank.data.folder_scan import (
    ImageFolder,
    difference,
    require_images,
    require_same,
    scan,
    scan_for_training,
    some,
)
from lowrank.data.images import decode, read_file, size_of, stored_size
from lowrank.data.obtaining import Say, one_line, sha256_of_array
from lowrank.data.sources import replaced_folder, write_array, write_index
from lowrank.errors import UserError

# The label of an image whose class is not known.
NO_LABEL = -1

_GIB = 2**30
_REPORT_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class _Read:
    """One file: its image, its length in bytes and SHA-256; or why it is not readable."""

    name: str
    image: NDArray[np.uint8] | None = None
    length: int = 0
    sha256: str = ""
    unreadable: str = ""


def outputs_of(
    classes: tuple[str, ...], outputs: Mapping[str, int] | None, place: str
) -> tuple[int, ...] | None:
    """The mapping's outputs in the order of the classes. Raises UserError when the names differ."""
    if outputs is None:
        return None
    require_same(place, ("the dataset", set(classes)), ("the mapping", set(outputs)))
    return tuple(outputs[name] for name in classes)


def store_folders(output: Path, name: str, settings: DatasetSettings, say: Say) -> None:
    """Store two folders of images as `lowrank.data.datasets.open_dataset` reads them.

    Every image is decoded once, to know that it can be. Decoded images are kept where both
    folders fit into `settings.cache_gib`; else the index says where the files are. Both give the
    same images.

    Raises
    ------
    UserError
        When a folder or a class is missing or empty, a file is no image and
        `settings.skip_unreadable` is not set, or `output` cannot be written.
    """
    place = f"dataset.{name}"
    parts = {
        "train": scan_for_training(Path(settings.train), f"{place}.train"),
        "test": scan(Path(settings.validation), f"{place}.validation"),
    }
    classes, unlabelled = parts["test"].classes, ""
    if differing := difference(*((str(p.root), set(p.classes)) for p in parts.values())):
        # What needs no labels works all the same; what does says why it cannot.
        unlabelled = f"{parts['train'].root} {differing}"
        parts["train"] = replace(parts["train"], labelled=False)
        say(f"warning: {place}.train: images are used without labels: {unlabelled}")
    outputs = outputs_of(classes, settings.outputs, f"{place}.outputs")
    decoded = _are_stored_decoded(parts.values(), settings, say)
    with replaced_folder(output) as new:
        stored = {
            key: _store_part(new, key, part, settings, f"{place}.{role}", say, decoded=decoded)
            for (key, part), role in zip(parts.items(), ("train", "validation"), strict=True)
        }
        shared = _in_both(parts, {key: digests for key, (_, _, digests) in stored.items()})
        if shared:
            say(
                f"warning: {place}: {len(shared)} of the {len(parts['test'].files)} images that "
                f"are reported are training images, too, byte for byte: {some(shared)}. Accuracy "
                "on them shows memory. Remove them from one of the folders."
            )
        rest = _form(parts, settings, decoded=decoded) | {
            "reduced": any(reduced for _, reduced, _ in stored.values()),
            "splits": {key: split for key, (split, _, _) in stored.items()},
            **({"in_both": len(shared)} if shared else {}),
            **({"unlabelled": unlabelled} if unlabelled else {}),
        }
        write_index(new, name, classes, outputs, rest)


def store_validation_folder(
    output: Path,
    folder: str,
    classes: Sequence[str],
    settings: DatasetSettings,
    *,
    place: str,
    say: Say,
) -> dict[str, Any]:
    """Store a user's own validation images in `output`, beside the index of a network's splits.

    Returns what that index says of them. `classes` are the dataset's. Raises UserError as
    `store_folders` does, and where the folder's classes are not the dataset's.
    """
    part = scan(Path(folder), place)
    require_same(place, (folder, set(part.classes)), ("the dataset", set(classes)))
    by_name = [list(classes).index(name) for name in part.classes]
    part = replace(
        part, classes=tuple(classes), labels=tuple(by_name[label] for label in part.labels)
    )
    decoded = _are_stored_decoded([part], settings, say)
    split, reduced, _ = _store_part(
        output, "validation", part, settings, place, say, decoded=decoded
    )
    return _form({"validation": part}, settings, decoded=decoded) | {"reduced": reduced, **split}


def _in_both(
    parts: Mapping[str, ImageFolder], digests: Mapping[str, list[tuple[bytes, str]]]
) -> list[str]:
    """Name the files of `test` whose bytes are those of a file of `train`, and that file."""
    train = dict(digests["train"])
    return [
        f"{parts['test'].root / name} is {parts['train'].root / train[digest]}"
        for digest, name in digests["test"]
        if digest in train
    ]


def _form(
    parts: Mapping[str, ImageFolder], settings: DatasetSettings, *, decoded: bool
) -> dict[str, Any]:
    """What an index says of how images are stored."""
    where = {} if decoded else {"folders": {key: str(p.root) for key, p in parts.items()}}
    form = "pixels" if decoded else "files"
    return {"form": form, "store_pixels": settings.store_pixels, **where}


def _are_stored_decoded(
    parts: Collection[ImageFolder], settings: DatasetSettings, say: Say
) -> bool:
    gib = sum(_decoded_bytes(part, settings) for part in parts) / _GIB
    decoded = gib <= settings.cache_gib
    say(
        f"{' and '.join(str(len(part.files)) for part in parts)} image files, "
        f"{gib:.2f} GiB when decoded: "
        + ("stored" if decoded else f"more than `cache_gib` {settings.cache_gib:g}, left as files")
    )
    return decoded


def _decoded_bytes(part: ImageFolder, settings: DatasetSettings) -> int:
    """Bytes of all images, from the sizes that their files state; 0 for one that states none."""

    def of(name: str) -> int:
        try:
            size = size_of(part.root / name)
        except Exception:  # Told later, when the whole file is read.
            return 0
        height, width = stored_size(size, settings.store_pixels)
        return 3 * height * width

    total, progress = 0, Progress(len(part.files), "image sizes")
    for each in in_background(of, part.files, settings.threads):
        total += each
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

    Returns what the index says of it, whether an image may have been reduced, and of each file the
    start of its SHA-256 (which suffices to find equal files) and its name.
    """

    def read(name: str) -> _Read:
        path = part.root / name
        try:
            content = read_file(path)
            image = decode(content, settings.store_pixels)
        except Exception as error:  # Pillow raises nearly anything on a damaged file.
            return _Read(name, unreadable=f"{path} ({one_line(str(error))})")
        return _Read(name, image, len(content), hashlib.sha256(content).hexdigest())

    labels, sizes, files, unreadable, digests = [], [], [], [], []
    listing, reduced, said = hashlib.sha256(), False, time.monotonic()
    with _pixels_file(folder / f"{key}_pixels.npy" if decoded else None) as append:
        for number, (each, label) in enumerate(
            zip(in_background(read, part.files, settings.threads), part.labels, strict=True), 1
        ):
            if time.monotonic() - said > _REPORT_EVERY_SECONDS:
                said = time.monotonic()
                say(f"{key}: {number} of {len(part.files)} read")
            if each.image is None:
                if not settings.skip_unreadable:
                    raise UserError(
                        f"{place}: {each.unreadable}: cannot be read as an image. Replace or "
                        f"remove the file, or leave such files out by `skip_unreadable: true`."
                    )
                unreadable.append(each.unreadable)
                continue
            labels.append(label)
            sizes.append(each.image.shape[:2])
            files.append((each.name, each.length))
            # As `sha256sum` lists files.
            listing.update(f"{each.sha256}  {each.name}\n".encode())
            digests.append((bytes.fromhex(each.sha256[:16]), each.name))
            reduced |= min(each.image.shape[:2]) == settings.store_pixels
            append(each.image)
    if unreadable:
        say(
            f"{key}: {len(unreadable)} files cannot be read and are left out: "
            + "; ".join(unreadable)
        )
    if part.labelled:
        counts = np.bincount(labels, minlength=len(part.classes))
        require_images(place, part.root, dict(zip(part.classes, counts, strict=True)))
    label_array = np.array(labels if part.labelled else [NO_LABEL] * len(labels), np.int32)
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


@contextmanager
def _pixels_file(path: Path | None) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield what appends an image to a flat .npy file; where `path` is None, what drops it."""
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
        # NumPy leaves room in a header for any length of the first axis: it stays as long.
        file.seek(0)
        write_header()
        file.flush()
        os.fsync(file.fileno())
