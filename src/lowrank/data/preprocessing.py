"""From an image to what a network expects of its input: size, channels, scale.

All of it is NumPy and Pillow: both let go of Python's lock while they compute, and neither starts
threads of its own, so images are prepared beside training without disturbing it.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lowrank.zoo.registry import NetworkSpec

# Width / height of a random crop, and how often one that fits into the image is looked for:
# torchvision's RandomResizedCrop.
_NARROWEST, _WIDEST = 3 / 4, 4 / 3
_TRIES = 10


def to_input(images: NDArray[np.uint8], spec: NetworkSpec) -> Tensor:
    """Bytes (N, H, W, C), RGB, to the normalised float32 input (N, C, H, W), channels last."""
    if spec.channel_order == "bgr":
        images = images[..., ::-1]
    count, height, width, channels = images.shape
    # Scale and shift: (x / 255 - mean) / std. Over whole rows of pixels (N, H, W C), because
    # NumPy is slow along an axis as short as that of the channels.
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    pixels = images.reshape(count, height, width * channels).astype(np.float32)
    pixels *= np.tile(1 / (255 * std), width)
    pixels -= np.tile(mean / std, width)
    return torch.from_numpy(pixels.reshape(images.shape)).permute(0, 3, 1, 2)


def is_input(shape: tuple[int, int, int], spec: NetworkSpec) -> bool:
    """Whether images of this (H, W, C) go into the network as they are."""
    height, width, channels = shape
    input_channels, *input_size = spec.input_shape
    size = (height, width)
    return channels == input_channels and size == tuple(input_size) == resized_size(size, spec)


def resized_size(size: tuple[int, int], spec: NetworkSpec) -> tuple[int, int]:
    """Height and width to which an image of this height and width is resized before its crop.

    The shorter side becomes `spec.resize`, the other keeps the proportions, rounded down (as
    torchvision does). Where that does not cover the input, or `spec.resize` is None, it is what
    just covers the input.
    """
    shorter = min(size)
    needed = spec.input_shape[1:]
    cover = max(each / found for each, found in zip(needed, size, strict=True))
    if spec.resize is not None and spec.resize / shorter >= cover:
        height, width = (spec.resize * side // shorter for side in size)
    else:
        height, width = (
            max(each, round(cover * side)) for each, side in zip(needed, size, strict=True)
        )
    return height, width


def evaluation_image(image: NDArray[np.uint8], spec: NetworkSpec) -> NDArray[np.uint8]:
    """An image (H, W, C) as the network is measured on it: resized, and its middle cut out.

    What torchvision's preset `ImageClassification` does to a Pillow image before it normalises.
    """
    resized = _resized(image, spec)
    height, width = spec.input_shape[1:]
    # Python rounds halves to even, and so does torchvision's crop.
    top, left = round((resized.shape[0] - height) / 2), round((resized.shape[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def translated_image(
    image: NDArray[np.uint8], spec: NetworkSpec, pad: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """An image (H, W, C) resized, padded by reflection with `pad` pixels, cropped at random."""
    resized = _resized(image, spec)
    height, width = spec.input_shape[1:]
    padded = np.pad(resized, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else resized
    top = random.integers(0, padded.shape[0] - height + 1)
    left = random.integers(0, padded.shape[1] - width + 1)
    return padded[top : top + height, left : left + width]


def resized_crop(
    image: NDArray[np.uint8],
    spec: NetworkSpec,
    shares: tuple[float, float],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """A random part of an image (H, W, C), of a share of its area within bounds, at input size."""
    height, width = spec.input_shape[1:]
    picture = _picture(image, spec).crop(_random_box(image.shape[:2], shares, random))
    return _array(picture.resize((width, height), _filter(spec)), spec)


def _random_box(
    size: tuple[int, int], shares: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a part of random area, proportions and place.

    The proportions are uniform in their logarithm. Where no part that fits is found, it is the
    largest one in the middle whose proportions are allowed.
    """
    rows, columns = size
    for _ in range(_TRIES):
        area = rows * columns * random.uniform(*shares)
        proportion = math.exp(random.uniform(math.log(_NARROWEST), math.log(_WIDEST)))
        width, height = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < width <= columns and 0 < height <= rows:
            top = int(random.integers(0, rows - height + 1))
            left = int(random.integers(0, columns - width + 1))
            return left, top, left + width, top + height
    proportion = min(max(columns / rows, _NARROWEST), _WIDEST)
    width = min(columns, round(rows * proportion))
    height = min(rows, round(columns / proportion))
    top, left = (rows - height) // 2, (columns - width) // 2
    return left, top, left + width, top + height


def _resized(image: NDArray[np.uint8], spec: NetworkSpec) -> NDArray[np.uint8]:
    height, width = resized_size(image.shape[:2], spec)
    picture = _picture(image, spec)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), _filter(spec))
    return _array(picture, spec)


def _picture(image: NDArray[np.uint8], spec: NetworkSpec) -> Image.Image:
    """For Pillow; grey when the network takes one channel."""
    if image.shape[2] == 1:
        return Image.fromarray(image[..., 0])
    picture = Image.fromarray(image)
    return picture.convert("L") if spec.input_shape[0] == 1 else picture


def _array(picture: Image.Image, spec: NetworkSpec) -> NDArray[np.uint8]:
    """Back to (H, W, C); a grey image is repeated for each channel that the network takes."""
    array = np.asarray(picture)
    if array.ndim == 3:
        return array
    return np.broadcast_to(array[..., None], (*array.shape, spec.input_shape[0]))


def _filter(spec: NetworkSpec) -> Image.Resampling:
    return Image.Resampling[spec.interpolation.upper()]
