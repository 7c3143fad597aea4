"""Images of many sizes: how an image file becomes bytes, and where the bytes are found again."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lowrank.errors import UserError


class Images(Protocol):
    """Images by number, each (H, W, C) bytes; an array (N, H, W, C) is one of these."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> NDArray[np.uint8]: ...


def decode(content: bytes, largest_side: int) -> NDArray[np.uint8]:
    """An image file's content as RGB bytes (H, W, 3).

    An image whose shorter side is above `largest_side` pixels is reduced to it (bilinear,
    antialiased: what most published weights expect of a reduction anyway); none is enlarged.
    Raises what Pillow raises, of nearly any type, where the content is no whole image.
    """
    try:
        file = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:  # Its message names a buffer's place in memory.
        raise ValueError("no image of a kind that Pillow knows") from error
    with file:
        picture = file.convert("RGB")
    height, width = stored_size((picture.height, picture.width), largest_side)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


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
            content = path.read_bytes()
            if len(content) == length:
                return decode(content, self.largest_side)
            reason = f"it holds {len(content)} bytes, and {length} when the dataset was stored"
        except Exception as error:  # Pillow raises nearly anything on a damaged file.
            reason = str(error)
        raise UserError(
            f"{path}: cannot be read any more as the image that it was ({reason}). Put the file "
            "back, or delete the stored dataset and run the same command again."
        )
