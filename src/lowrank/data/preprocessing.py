"""Turn images into the input of a network: size, channels, normalization.

Everything uses NumPy and Pillow. Both release Python's GIL and start no threads of their own, so
images can be prepared during training without slowing it down.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lowrank.zoo.registry import NetworkSpec

# Limits for width / height of a random crop, and the number of attempts to find a crop that fits
# into the image. These are the values of torchvision's RandomResizedCrop.
_NARROWEST, _WIDEST = 3 / 4, 4 / 3
_ATTEMPTS = 10


def to_input(images: NDArray[np.uint8], spec: NetworkSpec) -> Tensor:
    """Convert 8-bit RGB images (N, H, W, C) to normalized float32 input (N, C, H, W).

    The result has the channels-last memory format.
    """
    if spec.channel_order == "bgr":
        images = images[..., ::-1]
    count, height, width, channels = images.shape
    # Compute (x / 255 - mean) / std over rows of pixels (N, H, W C), because NumPy is slow along an
    # axis as short as the channels.
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    pixels = images.reshape(count, height, width * channels).astype(np.float32)
    pixels *= np.tile(1 / (255 * std), width)
    pixels -= np.tile(mean / std, width)
    return torch.from_numpy(pixels.reshape(images.shape)).permute(0, 3, 1, 2)


def is_input(shape: tuple[int, int, int], spec: NetworkSpec) -> bool:
    """Return whether images of shape (H, W, C) need no resizing, cropping or channel conversion."""
    height, width, channels = shape
    input_channels, *input_size = spec.input_shape
    size = (height, width)
    return channels == input_channels and size == tuple(input_size) == resized_size(size, spec)


def resized_size(size: tuple[int, int], spec: NetworkSpec) -> tuple[int, int]:
    """Return the height and width to which an image of size (height, width) is resized.

    The shorter side becomes `spec.resize`, and the other side keeps the aspect ratio, rounded down
    (like torchvision). If the result does not cover the input, or `spec.resize` is None, the
    smallest size that covers the input is returned. The image is cropped afterwards.
    """
    shorter = min(size)
    input_size = spec.input_shape[1:]
    smallest_scale = max(needed / side for needed, side in zip(input_size, size, strict=True))
    if spec.resize is not None and spec.resize / shorter >= smallest_scale:
        height, width = (spec.resize * side // shorter for side in size)
    else:
        height, width = (
            max(needed, round(smallest_scale * side))
            for needed, side in zip(input_size, size, strict=True)
        )
    return height, width


def evaluation_image(image: NDArray[np.uint8], spec: NetworkSpec) -> NDArray[np.uint8]:
    """Resize an image (H, W, C) and crop its center, as for evaluation.

    Equals torchvision's preset `ImageClassification` for a Pillow image, before normalization.
    """
    resized = _resized(image, spec)
    height, width = spec.input_shape[1:]
    # Python rounds halves to even, like torchvision's crop.
    top, left = round((resized.shape[0] - height) / 2), round((resized.shape[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def translated_image(
    image: NDArray[np.uint8], spec: NetworkSpec, pad: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Resize an image (H, W, C), pad it by reflection with `pad` pixels and crop it at random."""
    resized = _resized(image, spec)
    height, width = spec.input_shape[1:]
    padded = np.pad(resized, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else resized
    top = generator.integers(0, padded.shape[0] - height + 1)
    left = generator.integers(0, padded.shape[1] - width + 1)
    return padded[top : top + height, left : left + width]


def resized_crop(
    image: NDArray[np.uint8],
    spec: NetworkSpec,
    shares: tuple[float, float],
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Crop a random part of an image (H, W, C) and resize it to the input size.

    `shares` are the smallest and largest share of the area of the image.
    """
    height, width = spec.input_shape[1:]
    picture = _picture(image, spec).crop(_random_box(image.shape[:2], shares, generator))
    return _array(picture.resize((width, height), _filter(spec)), spec)


def _random_box(
    size: tuple[int, int], shares: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a crop with random area, aspect ratio and position.

    The logarithm of the aspect ratio is uniform. If no crop fits in any attempt, return the largest
    centered crop with an allowed aspect ratio.
    """
    rows, columns = size
    for _ in range(_ATTEMPTS):
        area = rows * columns * generator.uniform(*shares)
        ratio = math.exp(generator.uniform(math.log(_NARROWEST), math.log(_WIDEST)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top = int(generator.integers(0, rows - height + 1))
            left = int(generator.integers(0, columns - width + 1))
            return left, top, left + width, top + height
    ratio = min(max(columns / rows, _NARROWEST), _WIDEST)
    width = min(columns, round(rows * ratio))
    height = min(rows, round(columns / ratio))
    top, left = (rows - height) // 2, (columns - width) // 2
    return left, top, left + width, top + height


def _resized(image: NDArray[np.uint8], spec: NetworkSpec) -> NDArray[np.uint8]:
    height, width = resized_size(image.shape[:2], spec)
    picture = _picture(image, spec)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), _filter(spec))
    return _array(picture, spec)


def _picture(image: NDArray[np.uint8], spec: NetworkSpec) -> Image.Image:
    """Convert an array to a Pillow image, in grayscale if the network has one input channel."""
    if image.shape[2] == 1:
        return Image.fromarray(image[..., 0])
    picture = Image.fromarray(image)
    return picture.convert("L") if spec.input_shape[0] == 1 else picture


def _array(picture: Image.Image, spec: NetworkSpec) -> NDArray[np.uint8]:
    """Convert a Pillow image to (H, W, C), repeating grayscale for each input channel."""
    array = np.asarray(picture)
    if array.ndim == 3:
        return array
    return np.broadcast_to(array[..., None], (*array.shape, spec.input_shape[0]))


def _filter(spec: NetworkSpec) -> Image.Resampling:
    return Image.Resampling[spec.interpolation.upper()]
