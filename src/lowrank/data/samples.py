"""Read samples of a network's input from a folder of images or a file of arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from lowrank.data.folder_scan import scan
from lowrank.data.images import decode, read_file
from lowrank.data.preprocessing import evaluation_image, to_input
from lowrank.errors import UserError
from lowrank.zoo.registry import NetworkSpec

# Shorter side to which a photo is reduced when it is decoded.
_LARGEST_SIDE = 2048


def images_in(folder: Path, spec: NetworkSpec, count: int, place: str) -> np.ndarray:
    """Return images of a folder as input of a network, (N, C, H, W) in float32.

    Parameters
    ----------
    folder
        Folder of images, with or without sub-folders.
    spec
        Size, normalization and channel order of the input.
    count
        Largest number of images, which are spread over the sorted names.
    place
        Parameter that messages name.

    Raises
    ------
    UserError
        If the folder is missing or has no images, or an image cannot be decoded.
    """
    found = scan(folder, place)
    numbers = np.linspace(0, len(found.files) - 1, min(count, len(found.files))).astype(int)
    images = []
    for name in (found.files[number] for number in numbers):
        try:
            image = decode(read_file(found.root / name), _LARGEST_SIDE)
        except Exception as error:  # Pillow raises nearly any type for damaged content.
            raise UserError(
                f"{place}: {found.root / name} cannot be read as an image ({error}). Remove it, or "
                "replace it by an intact copy."
            ) from error
        images.append(evaluation_image(image, spec))
    return to_input(np.stack(images), spec).contiguous().numpy()


def arrays_in(path: Path, place: str) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name, or that of an .npy file with an empty name.

    The array of an .npy file is mapped into memory and not read.

    Raises UserError if the file is missing or is no such file; pickled objects are not read.
    """
    try:
        loaded = np.load(path, "r", allow_pickle=False)
        is_single = isinstance(loaded, np.ndarray)
        arrays = {"": np.asarray(loaded)} if is_single else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{place}: {path} cannot be read as arrays ({error}). Expected a file of `numpy.save` "
            "or `numpy.savez`, with an array (samples, ...) for each input."
        ) from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not arrays or len({*lengths.values()}) != 1 or 0 in lengths.values():
        raise UserError(
            f"{place}: {path} has arrays of {lengths} samples; expected at least one sample, and "
            "the same number for each input."
        )
    return arrays
