"""Batches of images that depend only on seed and step, so training can resume at any step."""

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank.config.training import Augmentation
from lowrank.core.tensors import mapped
from lowrank.data.datasets import Split
from lowrank.data.images import InputArray
from lowrank.data.preprocessing import (
    evaluation_image,
    is_input,
    resized_crop,
    to_input,
    translated_image,
)
from lowrank.errors import UserError
from lowrank.zoo.registry import NetworkSpec

# Largest batch for evaluation, in images and in pixels. The limit on pixels keeps the feature maps
# of a deep network within about 1 GB.
_EVALUATED_IMAGES = 250
_EVALUATED_PIXELS = 2_000_000

# Inputs, a tensor or several by name, and labels.
Batch = tuple[Any, Tensor]


class EvaluationBatches:
    """Batches of a split for evaluation, in the order of the split and without augmentation."""

    def __init__(self, split: Split, spec: NetworkSpec) -> None:
        self._split, self._spec = split, spec
        pixels = (
            sum(math.prod(form.shape) for form in spec.forms)
            if spec.forms
            else math.prod(spec.input_shape[1:])
        )
        self._batch_size = min(_EVALUATED_IMAGES, max(1, _EVALUATED_PIXELS // pixels))
        self._fits_input = _fits_input(split, spec)

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Return the images (N, C, H, W), or inputs as they are, and labels (N,) of one batch.

        Several inputs are a dictionary of tensors by name.
        """
        start = number * self._batch_size
        rows = self._split.rows[start : start + self._batch_size]
        if isinstance(self._split.images, InputArray):
            return _as_they_are(self._split.images, rows), torch.from_numpy(
                self._split.labels[rows]
            )
        if self._fits_input:
            images = _selected(self._split, rows)
        else:
            images = np.stack(
                [evaluation_image(self._split.images[row], self._spec) for row in rows]
            )
        return to_input(images, self._spec), torch.from_numpy(self._split.labels[rows])


class AugmentedBatches:
    """Shuffled batches with random crops and horizontal flips.

    Crops: each image is padded by reflection with `pad_pixels` and cropped at a random position.
    If its size differs from the input of the network, it is first resized as for evaluation. With
    `pad_pixels` 0, the crop is the same as for evaluation. With `resized_crop`, the crop has a
    random area and aspect ratio and is resized to the input size (Szegedy et al. 2015, section 6).

    Flips: the first flip of each image is random, then it alternates from epoch to epoch (Jordan
    2024, section 3.6).

    Cutout: a square with side `cutout_pixels` at a random position is set to the mean color. It
    can extend beyond the image (DeVries & Taylor 2017). 0 disables cutout.

    The incomplete last batch of an epoch is dropped. Batch `step` (from 0) depends only on `seed`
    and `step`. Several threads can read batches at the same time.

    With `part` (index, count), only a part of each batch is read, such as the second quarter for
    (1, 4). An image is the same whatever the number of parts. `batch_size` is that of the whole
    batch, a multiple of the number.
    """

    def __init__(
        self,
        split: Split,
        spec: NetworkSpec,
        *,
        batch_size: int,
        augment: Augmentation,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.batches_per_epoch = len(split) // batch_size
        if self.batches_per_epoch == 0:
            raise UserError(
                f"{len(split)} training images do not fill one batch of `batch_size` {batch_size}. "
                f"Set `batch_size` to at most {len(split)}."
            )
        self._split, self._spec = split, spec
        self._batch_size, self._augment, self._seed = batch_size, augment, seed
        self._part = part
        # Inputs that are no images have no height and width.
        as_they_are = isinstance(split.images, InputArray)
        self._height, self._width = (1, 1) if as_they_are else spec.input_shape[1:]
        self._padded: NDArray[np.uint8] | None = None
        if augment.resized_crop is None and _fits_input(split, spec):
            pad = (augment.pad_pixels, augment.pad_pixels)
            padding = [(0, 0), pad, pad, (0, 0)]
            self._padded = np.pad(_selected(split, split.rows), padding, mode="reflect")
        self._labels = split.labels[split.rows]
        self._flip_at_start = np.random.default_rng([seed, 0]).random(len(split)) < 0.5

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the positions in the split of the images in the batch of one step."""
        epoch, part = self._epoch_and_slice(step)
        return self._epoch_plan(epoch)[0][part]

    def flipped(self, step: int) -> NDArray[np.bool_]:
        """Return which images in the batch of one step are flipped, as booleans (N,)."""
        epoch, _ = self._epoch_and_slice(step)
        return (self._flip_at_start[self.rows(step)] ^ bool(epoch % 2)) & self._augment.flip

    def __getitem__(self, step: int) -> Batch:
        """Return the images (N, C, H, W), or inputs as they are, and labels (N,) of one step.

        Several inputs are a dictionary of tensors by name. Raises UserError for inputs that are no
        images if there is any augmentation.
        """
        if isinstance(self._split.images, InputArray):
            self._augment.require_none()
            positions = self.rows(step)
            inputs = _as_they_are(self._split.images, self._split.rows[positions])
            return inputs, torch.from_numpy(self._labels[positions])
        epoch, part = self._epoch_and_slice(step)
        order, tops, lefts, corners = self._epoch_plan(epoch)
        rows, flipped = order[part], self.flipped(step)
        if self._padded is not None:
            images = self._translated(self._padded, rows, tops[part], lefts[part], flipped)
        else:
            images = np.stack(
                [self._augmented(epoch, row, flip) for row, flip in zip(rows, flipped, strict=True)]
            )
        inputs = to_input(images, self._spec)
        if self._augment.cutout_pixels:
            # 0 is the mean color. Write through NumPy, which shares the memory and starts no
            # threads.
            inputs.permute(0, 2, 3, 1).numpy()[self._cutout_mask(corners[:, part])] = 0.0
        return inputs, torch.from_numpy(self._labels[rows])

    def _epoch_and_slice(self, step: int) -> tuple[int, slice]:
        """Return the epoch of a step and the slice of its images in the order of the epoch."""
        epoch, position = divmod(step, self.batches_per_epoch)
        index, count = self._part
        size = self._batch_size // count
        start = position * self._batch_size + index * size
        return epoch, slice(start, start + size)

    def _translated(
        self,
        padded: NDArray[np.uint8],
        rows: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        flipped: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """Crop all images of a batch from the padded images (N, H, W, C)."""
        vertical = tops[:, None] + np.arange(self._height)
        horizontal = lefts[:, None] + np.arange(self._width)
        horizontal[flipped] = horizontal[flipped, ::-1]
        return padded[rows[:, None, None], vertical[:, :, None], horizontal[:, None, :]]

    def _augmented(self, epoch: int, row: int, flip: bool) -> NDArray[np.uint8]:
        """Return one augmented image, with its own random generator."""
        # Do not use `row` itself: NumPy ignores trailing zeros in a list of seeds.
        generator = np.random.default_rng([self._seed, 1 + epoch, 1 + row])
        image = self._split.images[self._split.rows[row]]
        if self._augment.resized_crop is None and not self._augment.pad_pixels:
            crop = evaluation_image(image, self._spec)
        elif self._augment.resized_crop is None:
            crop = translated_image(image, self._spec, self._augment.pad_pixels, generator)
        else:
            crop = resized_crop(image, self._spec, self._augment.resized_crop, generator)
        return crop[:, ::-1] if flip else crop

    def _cutout_mask(self, corners: NDArray) -> NDArray[np.bool_]:
        """Return which pixels the squares cover, (N, H, W), from their top left corners (2, N)."""
        covered = [
            (np.arange(size) >= first[:, None])
            & (np.arange(size) < first[:, None] + self._augment.cutout_pixels)
            for size, first in zip((self._height, self._width), corners, strict=True)
        ]
        # (N, H, 1) & (N, 1, W) -> (N, H, W)
        return covered[0][:, :, None] & covered[1][:, None, :]

    # Cache two epochs: batches at the end of one and the start of the next are made in parallel.
    @functools.lru_cache(maxsize=2)  # noqa: B019  (lives as long as the run that owns it)
    def _epoch_plan(self, epoch: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Return the order of images, the top and left of crops, and the corners of cutouts.

        The corners have the shape (2, images).
        """
        generator = np.random.default_rng([self._seed, 1 + epoch])
        images, positions = len(self._split), 2 * self._augment.pad_pixels + 1
        order = generator.permutation(images)
        tops, lefts = (generator.integers(0, positions, images) for _ in range(2))
        # The center of a square can be any pixel. Draw it last, so that cutout changes nothing
        # else.
        centers = np.stack([generator.integers(0, n, images) for n in (self._height, self._width)])
        return order, tops, lefts, centers - self._augment.cutout_pixels // 2


def _as_they_are(inputs: InputArray, rows: NDArray[np.int64]) -> Any:
    return mapped(lambda array: torch.from_numpy(np.ascontiguousarray(array)), inputs[rows])


def _selected(split: Split, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some images (n, H, W, C) of a split whose images are in one array."""
    if not isinstance(split.images, np.ndarray):
        raise TypeError(f"expected an array of images, found {type(split.images).__name__}")
    return split.images[rows]


def _fits_input(split: Split, spec: NetworkSpec) -> bool:
    """Return whether all images of a split are in one array and have the size of the input."""
    return isinstance(split.images, np.ndarray) and is_input(split.images.shape[1:], spec)
