"""Obtain Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) and read its IDX files."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.data.obtaining import (
    Arrays,
    DatasetDigests,
    Say,
    Source,
    UnusableError,
    obtained,
    torchvision_download,
)

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip

# SHA-256 of the bytes of each array in C order, images as (N, 28, 28, 1). All sources must match.
FASHION_MNIST_SHA256 = {
    "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train_labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "test_labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}

_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}

# Folders below `search` in which users can put the files; the second one is torchvision's.
_MANUAL_COPIES = ("fashion-mnist", "FashionMNIST/raw")

_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def obtain_fashion_mnist(search: Path, say: Say) -> Arrays:
    """Read Fashion-MNIST from the first available source and verify it.

    The sources are tried in this order: IDX files (packed or unpacked) that the user put into the
    folder `fashion-mnist` or `FashionMNIST/raw` below `search`, the Debian package if it is
    installed, torchvision's download. `say` is called with lines of progress.

    Returns `train_images` (60000, 28, 28, 1), `train_labels` (60000,), `test_images` (10000, 28,
    28, 1) and `test_labels` (10000,), all uint8, in the official order. Raises UserError if the
    user's files are damaged or modified, or no source is available.
    """
    return obtained(
        DatasetDigests("Fashion-MNIST", FASHION_MNIST_SHA256),
        {search / name: _read_idx_files for name in _MANUAL_COPIES},
        _SOURCES,
        say,
        keep=search,
        before=f"{search} has no folder {' or '.join(_MANUAL_COPIES)}",
        advice=f"Install the package {_DEBIAN_PACKAGE} on Debian or Ubuntu, or put the four files "
        f"{', '.join(f'{name}.gz' for name in _FILES.values())} from the Fashion-MNIST home page "
        f"into {search / _MANUAL_COPIES[0]}. Then run the same command again.",
    )


def _read_idx_files(folder: Path) -> Arrays:
    arrays = {key: _read_idx(folder, name) for key, name in _FILES.items()}
    return {key: a[..., None] if key.endswith("images") else a for key, a in arrays.items()}


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read the array of an IDX file: two zeros, a type, the number of axes, the shape, the data."""
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif plain.exists():
        content = plain.read_bytes()
    else:
        raise UnusableError(f"has neither {name} nor {name}.gz")
    axes = content[3]
    if content[:3] != b"\x00\x00\x08":
        raise UnusableError(f"its {name} is not an IDX file of bytes")
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _find_debian_package(folder: Path) -> Path:
    if not _DEBIAN_FOLDER.exists():
        raise UnusableError(f"is not installed ({_DEBIAN_FOLDER} does not exist)")
    return _DEBIAN_FOLDER


def _fetch_with_torchvision(folder: Path) -> Path:
    with torchvision_download(folder):
        from torchvision.datasets import FashionMNIST
        from torchvision.datasets.utils import download_url

        for name, md5 in FashionMNIST.resources:
            download_url(f"{FashionMNIST.mirrors[0]}{name}", folder, name, md5)
    return folder


_SOURCES = (
    Source(f"the Debian package {_DEBIAN_PACKAGE}", _find_debian_package, _read_idx_files),
    Source(
        "torchvision's download (31 MB)",
        _fetch_with_torchvision,
        _read_idx_files,
        kept=_MANUAL_COPIES[0],
    ),
)
