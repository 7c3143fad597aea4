"""Create small folders of image files of different sizes for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 50, 40)}


def photo(height: int, width: int, seed: int = 0, colour=(128, 128, 128)) -> np.ndarray:
    """Return smooth noise around a colour, (H, W, 3), which remains similar after a resize."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 40, (5, 6, 3)) + colour
    small = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write_photos(
    root: Path, counts: Mapping[str, int], *, seed: int = 0, largest: int = 60, suffix: str = ".png"
) -> Path:
    """Write a subfolder for each class, with images of its colour in random sizes."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            height, width = random.integers(largest // 2, largest, 2)
            image = photo(height, width, seed=int(random.integers(2**31)), colour=COLOURS[name])
            Image.fromarray(image).save(root / name / f"{number:03}{suffix}")
    return root


def write_flat_photos(root: Path, count: int, *, seed: int = 0) -> Path:
    """Write images of random sizes into a folder without subfolders."""
    write_photos(root, {"red": count}, seed=seed)
    for path in (root / "red").iterdir():
        path.rename(root / path.name)
    (root / "red").rmdir()
    return root
