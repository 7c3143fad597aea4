"""Decode image files of any size, and read stored images."""

import contextlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lowrank.core.tensors import length, mapped
from lowrank.errors import UserError

# Formats of the suffixes that are accepted as images. Other formats are not safe: for a PostScript
# file with any name, Pillow starts Ghostscript. PPM includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

# 16-bit modes, for which Pillow's `convert` clips values at 255.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class Images(Protocol):
    """Sequence of 8-bit images (H, W, C), such as an array (N, H, W, C)."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> NDArray[np.uint8]: ...


def read_file(path: Path) -> bytes:
    """Return the content of a regular file. Raises ValueError for other files, which can block."""
    # Open the file before the check, so that it cannot change in between. O_NONBLOCK opens a named
    # pipe without waiting for its writer.
    with open(path, "rb", opener=_open_nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file, but a pipe, a socket or a device")
        return file.read()


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode(content: bytes, largest_side: int) -> NDArray[np.uint8]:
    """Decode the content of an image file to 8-bit RGB (H, W, 3).

    The EXIF orientation is applied. 16-bit grayscale is scaled to 8 bits. Transparency is dropped,
    like in torchvision. Images with 32-bit integers or floating-point values are rejected, because
    the files do not define which value is white.

    If the shorter side is larger than `largest_side` pixels, the image is resized to it (bilinear,
    antialiased, as most published weights expect). Images are never enlarged. Damaged content
    raises the errors of Pillow, which can have nearly any type.
    """
    try:
        file = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # Its message contains a memory address.
        raise ValueError(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    with file:
        picture = _rgb(file)
    height, width = stored_size((picture.height, picture.width), largest_side)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _rgb(file: Image.Image) -> Image.Image:
    """Return the image of an opened file in RGB, with its EXIF orientation applied."""
    file.load()
    # Ignore damaged EXIF data, for which Pillow raises many types of errors: pixels are valid.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(file, in_place=True)
    # Pillow scales the values of a PGM file to 16 bits, for any maximum value in its header.
    scaled_to_16_bits = file.mode == "I" and file.format == "PPM"
    if scaled_to_16_bits or file.mode in _SIXTEEN_BITS:
        values = np.asarray(file).astype(np.uint32)
        eight_bits = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if file.mode in ("I", "F"):
        kind = "32-bit integers" if file.mode == "I" else "floating-point values"
        raise ValueError(
            f"its pixels are {kind}, and the file does not define which value is white; save it "
            "with 8 or 16 bits per channel"
        )
    if file.mode == "P" and "transparency" in file.info:
        file = file.convert("RGBA")
    return file.convert("RGB")


def size_of(path: Path) -> tuple[int, int]:
    """Return the height and width in the header of an image file.

    Raises the errors of `decode` and of the file system.
    """
    with (
        open(path, "rb", opener=_open_nonblocking) as content,
        Image.open(content, formats=FORMATS) as file,
    ):
        return file.height, file.width


def stored_size(size: tuple[int, int], largest_side: int) -> tuple[int, int]:
    """Return the height and width that an image of size (height, width) has after `decode`."""
    shorter = min(size)
    if shorter <= largest_side:
        return size
    height, width = (largest_side * side // shorter for side in size)
    return height, width


@dataclass(frozen=True)
class StoredImages:
    """Decoded images in one flat array of bytes, with their heights and widths (N, 2)."""

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    _starts: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = np.cumsum(3 * self.sizes.prod(1))
        object.__setattr__(self, "_starts", np.concatenate([[0], ends]))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        start, end = self._starts[number : number + 2]
        return self.pixels[start:end].reshape(*self.sizes[number], 3)


@dataclass(frozen=True)
class InputArray:
    """Inputs that a network takes as they are, in place of images.

    `values` is an array (N, ...), or arrays by the names of several inputs.
    """

    values: Any

    def __len__(self) -> int:
        return length(self.values)

    def __getitem__(self, number: Any) -> Any:
        return mapped(lambda array: array[number], self.values)


@dataclass(frozen=True)
class ImageFiles:
    """Images decoded from their files on each access, if storing them needs too much space.

    The images equal those of `StoredImages`. `files` holds a path relative to `folder` and a length
    in bytes for each image.
    """

    folder: Path
    files: Sequence[tuple[str, int]]
    largest_side: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        name, length = self.files[number]
        path = self.folder / name
        try:
            content = read_file(path)
            if len(content) == length:
                return decode(content, self.largest_side)
            reason = f"it has {len(content)} bytes, but had {length} when the dataset was stored"
        except Exception as error:  # Pillow raises many types of errors for damaged files.
            reason = str(error)
        raise UserError(
            f"{path}: the image is missing or has changed ({reason}). Restore the file, or delete "
            "the stored dataset and run the same command again."
        )
