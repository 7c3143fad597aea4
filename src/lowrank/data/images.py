"""Images of many sizes: how an image file becomes bytes, and where the bytes are found again."""

import contextlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lowrank.errors import UserError

# The formats of the suffixes that a folder of images may have. Not all that Pillow knows: for
# PostScript, whatever the file is called, it starts Ghostscript. PPM includes PGM and PBM.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

# Modes whose `convert` clips at 255 what goes up to 65535.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class Images(Protocol):
    """Images by number, each (H, W, C) bytes; an array (N, H, W, C) is one of these."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> NDArray[np.uint8]: ...


def read_file(path: Path) -> bytes:
    """The content of an ordinary file. Raises ValueError for any other, which could block."""
    # Opened first and looked at then, so that nothing can come between. A named pipe that is
    # opened so does not wait for its writer.
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no ordinary file, but a pipe, a socket or a device")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode(content: bytes, largest_side: int) -> NDArray[np.uint8]:
    """An image file's content as RGB bytes (H, W, 3), turned as its EXIF orientation says.

    16-bit greys are scaled to 8 bits, transparency is dropped, as torchvision drops it. Integers of
    32 bits and floating-point values are refused, because no file says which value is white.

    An image whose shorter side is above `largest_side` pixels is reduced to it (bilinear,
    antialiased: what most published weights expect of a reduction anyway); none is enlarged.
    Raises what Pillow raises, of nearly any type, where the content is no whole image.
    """
    try:
        file = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # Its message names a buffer's place in memory.
        raise ValueError(f"no image of one of the formats {', '.join(FORMATS)}") from error
    with file:
        picture = _rgb(file)
    height, width = stored_size((picture.height, picture.width), largest_side)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _rgb(file: Image.Image) -> Image.Image:
    """The picture of an opened file, turned as its EXIF data say, in RGB."""
    file.load()
    # Pillow raises nearly anything on damaged EXIF data, which say nothing of the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(file, in_place=True)
    # Pillow widens the values of a PGM file to 16 bits, whatever its largest one.
    widened = file.mode == "I" and file.format == "PPM"
    if widened or file.mode in _SIXTEEN_BITS:
        values = np.asarray(file).astype(np.uint32)
        eight_bits = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if file.mode in ("I", "F"):
        kind = "32-bit integers" if file.mode == "I" else "floating-point values"
        raise ValueError(
            f"its pixels are {kind}, and nothing says which value is white; save it with 8 or 16 "
            "bits a channel"
        )
    if file.mode == "P" and "transparency" in file.info:
        file = file.convert("RGBA")
    return file.convert("RGB")


def size_of(path: Path) -> tuple[int, int]:
    """The height and width that an image file states. Raises what `decode` and the system raise."""
    with (
        open(path, "rb", opener=_without_waiting) as content,
        Image.open(content, formats=FORMATS) as file,
    ):
        return file.height, file.width


def stored_size(size: tuple[int, int], largest_side: int) -> tuple[int, int]:
    """Height and width after `decode` of an image of this height and width."""
    shorter = min(size)
    if shorter <= largest_side:
        return size
    height, width = (largest_side * side // shorter for side in size)
    return height, width


@dataclass(frozen=True)
class StoredImages:
    """Decoded images end to end in one array (bytes,), with the height and width (N, 2) of each."""

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
class ImageFiles:
    """Images that are decoded from their files each time, where storing them takes too much room.

    Gives the same bytes as `StoredImages` would. `files` holds a path below `folder` and a length
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
            reason = f"it holds {len(content)} bytes, and {length} when the dataset was stored"
        except Exception as error:  # Pillow raises nearly anything on a damaged file.
            reason = str(error)
        raise UserError(
            f"{path}: cannot be read any more as the image that it was ({reason}). Put the file "
            "back, or delete the stored dataset and run the same command again."
        )
