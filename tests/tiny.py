"""Create a small dataset in the format of the `dataset` step for tests."""

import colorsys
from pathlib import Path

import numpy as np

from lowrank.data.sources import store_dataset

CLASSES = 10


def write_tiny_dataset(folder: Path, train: int = 400, test: int = 100, seed: int = 0) -> None:
    """Store noisy images with one hue per class, which a network learns in a few steps.

    Classes are balanced and in random order. The same arguments give the same bytes.
    """
    random = np.random.default_rng(seed)
    hues = [colorsys.hsv_to_rgb(hue / CLASSES, 1, 1) for hue in range(CLASSES)]
    colours = 64 + 128 * np.array(hues)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = random.permutation(np.arange(count) % CLASSES)
        noise = random.normal(0, 30, (count, 32, 32, 3))
        images = colours[labels][:, None, None, :] + noise
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    store_dataset(folder, "tiny", [f"hue {number}" for number in range(CLASSES)], arrays)
