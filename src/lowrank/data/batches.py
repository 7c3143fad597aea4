"""Batches of images, a pure function of seed and step: training resumes anywhere."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank.config.training import Augmentation
from lowrank.data.datasets import Split
from lowrank.data.preprocessing import (
    evaluation_image,
    is_input,
    resized_crop,
    to_input,
    translated_image,
)
from lowrank.errors import UserError
from lowrank.zoo.registry import NetworkSpec

# Images of a batch that is only evaluated, and its pixels: a batch of large images is smaller, so
# that the maps of a deep network stay within about a gigabyte.
_EVALUATED_IMAGES = 250
_EVALUATED_PIXELS = 2_000_000

Batch = tuple[Tensor, Tensor]


class EvaluationBatches:
    """A split in its own order, as the network is measured on it: nothing is random."""

    def __init__(self, split: Split, spec: NetworkSpec) -> None:
        self._split, self._spec = split, spec
        _, height, width = spec.input_shape
        self._batch_size = min(_EVALUATED_IMAGES, max(1, _EVALUATED_PIXELS // (height * width)))
        self._as_they_are = _are_input(split, spec)

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Images (N, C, H, W) and labels (N,) of one batch."""
        start = number * self._batch_size
        rows = self._split.rows[start : start + self._batch_size]
        if self._as_they_are:
            images = self._split.images[rows]
        else:
            images = np.stack([evaluation_image(self._split.images[r], self._spec) for r in rows])
        return to_input(images, self._spec), torch.from_numpy(self._split.labels[rows])


class AugmentedBatches:
    """Shuffled batches with random crop and horizontal flip.

    Each image is padded by reflection with `pad_pixels` and cropped back at a random place; an
    image of another size than the network's input is resized first, as for evaluation, and the
    crop is anywhere in it. With `pad_pixels` 0 it is the crop of the evaluation. With
    `resized_crop` it is a part of random area and proportions that is resized to the input
    (Szegedy et al. 2015, section 6).
    Flips alternate: an image's first flip is random, then it changes every epoch, so that two
    epochs in a row never show the same one (Jordan 2024, section 3.6). `cutout_pixels` is the
    side of a square at a random place that is greyed out, partly outside the image where it lies
    at a border (DeVries & Taylor 2017); 0: none. An epoch's incomplete last batch is left out.

    Batch `step` (from 0) depends on `seed` and `step` alone; several threads may ask for batches.
    """

    def __init__(
        self,
        split: Split,
        spec: NetworkSpec,
        *,
        batch_size: int,
        augment: Augmentation,
        seed: int,
    ) -> None:
        self.batches_per_epoch = len(split) // batch_size
        if self.batches_per_epoch == 0:
            raise UserError(
                f"{len(split)} training images do not fill one batch of `batch_size` {batch_size}. "
                "Set `batch_size` to no more than there are images."
            )
        self._split, self._spec = split, spec
        self._batch_size, self._augment, self._seed = batch_size, augment, seed
        _, self._height, self._width = spec.input_shape
        self._padded: NDArray[np.uint8] | None = None
        if augment.resized_crop is None and _are_input(split, spec):
            pad = (augment.pad_pixels, augment.pad_pixels)
            padding = ((0, 0), pad, pad, (0, 0))
            self._padded = np.pad(split.images[split.rows], padding, mode="reflect")
        self._labels = split.labels[split.rows]
        self._flip_at_start = np.random.default_rng([seed, 0]).random(len(split)) < 0.5

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which images of the split are in the batch of one step, counted from its first."""
        epoch, which = self._place(step)
        return self._epoch_plan(epoch)[0][which]

    def flipped(self, step: int) -> NDArray[np.bool_]:
        """Which images in the batch of one step are mirrored."""
        return (self._flip_at_start[self.rows(step)] ^ bool(self._place(step)[0] % 2)) & (
            self._augment.flip
        )

    def __getitem__(self, step: int) -> Batch:
        """Images (N, C, H, W) and labels (N,) of one step."""
        epoch, which = self._place(step)
        order, tops, lefts, holes = self._epoch_plan(epoch)
        rows, flipped = order[which], self.flipped(step)
        if self._padded is not None:
            images = self._translated(rows, tops[which], lefts[which], flipped)
        else:
            images = np.stack(
                [self._drawn(epoch, row, flip) for row, flip in zip(rows, flipped, strict=True)]
            )
        inputs = to_input(images, self._spec)
        if self._augment.cutout_pixels:
            # The mean colour. By way of NumPy, which shares the memory and starts no threads.
            inputs.permute(0, 2, 3, 1).numpy()[self._cut_out(holes[:, which])] = 0.0
        return inputs, torch.from_numpy(self._labels[rows])

    def _place(self, step: int) -> tuple[int, slice]:
        """The epoch of a step, and where in the epoch's order its images are."""
        epoch, position = divmod(step, self.batches_per_epoch)
        return epoch, slice(position * self._batch_size, (position + 1) * self._batch_size)

    def _translated(
        self, rows: NDArray, tops: NDArray, lefts: NDArray, flipped: NDArray
    ) -> NDArray[np.uint8]:
        """All images of a batch at once, cropped from the padded ones."""
        vertical = tops[:, None] + np.arange(self._height)
        horizontal = lefts[:, None] + np.arange(self._width)
        horizontal[flipped] = horizontal[flipped, ::-1]
        return self._padded[rows[:, None, None], vertical[:, :, None], horizontal[:, None, :]]

    def _drawn(self, epoch: int, row: int, flip: bool) -> NDArray[np.uint8]:
        """One image, from random numbers of its own."""
        # Not `row` itself: a list of numbers that ends in 0 seeds as it does without the 0.
        random = np.random.default_rng([self._seed, 1 + epoch, 1 + row])
        image = self._split.images[self._split.rows[row]]
        if self._augment.resized_crop is None and not self._augment.pad_pixels:
            crop = evaluation_image(image, self._spec)
        elif self._augment.resized_crop is None:
            crop = translated_image(image, self._spec, self._augment.pad_pixels, random)
        else:
            crop = resized_crop(image, self._spec, self._augment.resized_crop, random)
        return crop[:, ::-1] if flip else crop

    def _cut_out(self, holes: NDArray) -> NDArray[np.bool_]:
        """Which pixels the squares cover, (N, H, W), from their corners (2, N)."""
        covered = [
            (np.arange(size) >= first[:, None])
            & (np.arange(size) < first[:, None] + self._augment.cutout_pixels)
            for size, first in zip((self._height, self._width), holes, strict=True)
        ]
        # (N, H, 1) & (N, 1, W) -> (N, H, W)
        return covered[0][:, :, None] & covered[1][:, None, :]

    # Two epochs: batches at the end of one and the start of the next are made at the same time.
    @functools.lru_cache(maxsize=2)  # noqa: B019  (lives as long as the run that owns it)
    def _epoch_plan(self, epoch: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Order, top and left of each crop, and the corners (2, images) of what is cut out."""
        random = np.random.default_rng([self._seed, 1 + epoch])
        images, places = len(self._split), 2 * self._augment.pad_pixels + 1
        order = random.permutation(images)
        tops, lefts = (random.integers(0, places, images) for _ in range(2))
        # The centre of a square is any pixel. Drawn last: without cutout nothing else changes.
        centres = np.stack([random.integers(0, n, images) for n in (self._height, self._width)])
        return order, tops, lefts, centres - self._augment.cutout_pixels // 2


def _are_input(split: Split, spec: NetworkSpec) -> bool:
    """Whether all images of a split have one size, which is that of the input."""
    return isinstance(split.images, np.ndarray) and is_input(split.images.shape[1:], spec)
