"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): where it comes from, and how IDX files are read."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.data.obtaining import (
    Arrays,
    Say,
    Source,
    UnusableError,
    Wanted,
    first_that_works,
    read_by_hand,
    torchvisions_download,
)

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip

# SHA-256 of each array's bytes in C order, images as (N, 28, 28, 1). Every source decodes to these.
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

# Folders below `search` where the files are looked for: of their own, and torchvision's.
_BY_HAND = ("fashion-mnist", "FashionMNIST/raw")

_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def obtain_fashion_mnist(search: Path, say: Say) -> Arrays:
    """Read Fashion-MNIST from the first source that has it, and verify it.

    The sources are, in turn: IDX files, packed or not, that the user put into `search`, Debian's
    package where it is installed, and torchvision's download. Each attempt and its outcome is
    told through `say`, one line each.

    Parameters
    ----------
    search : Path
        Folder in which to look for `fashion-mnist` or `FashionMNIST/raw`.
    say : callable
        Takes one line of progress.

    Returns
    -------
    dict of arrays
        `train_images` (60000, 28, 28, 1), `train_labels` (60000,), `test_images`
        (10000, 28, 28, 1) and `test_labels` (10000,), all uint8, in the dataset's own order.

    Raises
    ------
    UserError
        When files that were put there by hand are damaged or altered, or no source is reachable.
    """
    wanted = Wanted("Fashion-MNIST", FASHION_MNIST_SHA256)
    for name in _BY_HAND:
        if (search / name).exists():
            return read_by_hand(wanted, search / name, _read_idx_files, say)
    return first_that_works(
        wanted,
        _SOURCES,
        say,
        keep=search,
        before=f"{search} holds no folder {' or '.join(_BY_HAND)}",
        advice=f"Install the package {_DEBIAN_PACKAGE} on Debian or Ubuntu, or put the four files "
        f"{', '.join(f'{name}.gz' for name in _FILES.values())} from Fashion-MNIST's home page "
        f"into {search / _BY_HAND[0]}, and run the same command again.",
    )


def _read_idx_files(folder: Path) -> Arrays:
    arrays = {key: _read_idx(folder, name) for key, name in _FILES.items()}
    return {key: a[..., None] if key.endswith("images") else a for key, a in arrays.items()}


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """One array of an IDX file: two zeros, a type, the number of axes, their lengths, the data."""
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif plain.exists():
        content = plain.read_bytes()
    else:
        raise UnusableError(f"lacks {name} and {name}.gz")
    axes = content[3]
    if content[:3] != b"\x00\x00\x08":
        raise UnusableError(f"its {name} is no IDX file of bytes")
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _find_debians(folder: Path) -> Path:
    if not _DEBIAN_FOLDER.exists():
        raise UnusableError(f"is not installed ({_DEBIAN_FOLDER} does not exist)")
    return _DEBIAN_FOLDER


def _fetch_with_torchvision(folder: Path) -> Path:
    with torchvisions_download(folder):
        from torchvision.datasets import FashionMNIST
        from torchvision.datasets.utils import download_url

        for name, md5 in FashionMNIST.resources:
            download_url(f"{FashionMNIST.mirrors[0]}{name}", folder, name, md5)
    return folder


_SOURCES = (
    Source(f"Debian's package {_DEBIAN_PACKAGE}", _find_debians, _read_idx_files),
    Source(
        "torchvision's download (31 MB)", _fetch_with_torchvision, _read_idx_files, kept=_BY_HAND[0]
    ),
)
