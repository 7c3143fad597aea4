"""Batches of augmented images, a pure function of seed and step: training resumes anywhere."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank.errors import UserError
from lowrank.networks.registry import NetworkSpec
from lowrank.params import Augmentation
from lowrank.training.datasets import Split


def to_input(images: NDArray[np.uint8], spec: NetworkSpec) -> Tensor:
    """Bytes (N, H, W, C) to the normalised float32 input (N, C, H, W), channels last in memory."""
    # Scale and shift in one pass: (x / 255 - mean) / std.
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    pixels = images * (1 / (255 * std)) - mean / std
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)


class AugmentedBatches:
    """Shuffled batches with random translation and horizontal flip.

    Each image is padded by reflection with `pad_pixels` and cropped back at a random place. Flips
    alternate: an image's first flip is random, then it changes every epoch, so that two epochs in
    a row never show the same one (Jordan 2024, section 3.6). `cutout_pixels` is the side of a
    square at a random place that is greyed out, partly outside the image where it lies at a border
    (DeVries & Taylor 2017); 0: none. An epoch's incomplete last batch is left out.

    Batch `step` (from 0) depends on `seed` and `step` alone.
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
        _, self._height, self._width, _ = split.images.shape
        pad = (augment.pad_pixels, augment.pad_pixels)
        padding = ((0, 0), pad, pad, (0, 0))
        self._padded = np.pad(split.images[split.rows], padding, mode="reflect")
        self._labels = split.labels[split.rows]
        self._flip_at_start = np.random.default_rng([seed, 0]).random(len(split)) < 0.5

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and labels (N,) of one step."""
        epoch, position = divmod(step, self.batches_per_epoch)
        order, tops, lefts, holes = self._epoch_plan(epoch)
        which = slice(position * self._batch_size, (position + 1) * self._batch_size)
        rows = order[which]
        vertical = tops[which, None] + np.arange(self._height)
        horizontal = lefts[which, None] + np.arange(self._width)
        if self._augment.flip:
            flipped = self._flip_at_start[rows] ^ bool(epoch % 2)
            horizontal[flipped] = horizontal[flipped, ::-1]
        images = self._padded[rows[:, None, None], vertical[:, :, None], horizontal[:, None, :]]
        inputs = to_input(images, self._spec)
        if self._augment.cutout_pixels:
            inputs[self._cut_out(holes[:, which])] = 0.0  # the mean colour
        return inputs, torch.from_numpy(self._labels[rows])

    def _cut_out(self, holes: NDArray) -> Tensor:
        """Which pixels the squares cover, (N, C, H, W), from their corners (2, N)."""
        covered = [
            (np.arange(size) >= first[:, None])
            & (np.arange(size) < first[:, None] + self._augment.cutout_pixels)
            for size, first in zip((self._height, self._width), holes, strict=True)
        ]
        # (N, H, 1) & (N, 1, W) -> (N, 1, H, W)
        squares = torch.from_numpy(covered[0][:, None, :, None] & covered[1][:, None, None, :])
        return squares.expand(-1, self._split.images.shape[-1], -1, -1)

    @functools.lru_cache(maxsize=1)  # noqa: B019  (lives as long as the run that owns it)
    def _epoch_plan(self, epoch: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Order, top and left of each crop, and the corners (2, images) of what is cut out."""
        random = np.random.default_rng([self._seed, 1 + epoch])
        images, places = len(self._split), 2 * self._augment.pad_pixels + 1
        order = random.permutation(images)
        tops, lefts = (random.integers(0, places, images) for _ in range(2))
        # The centre of a square is any pixel. Drawn last: without cutout nothing else changes.
        centres = np.stack([random.integers(0, n, images) for n in (self._height, self._width)])
        return order, tops, lefts, centres - self._augment.cutout_pixels // 2
