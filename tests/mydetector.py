"""A user's own detector with two outputs, and its metric on the user's own data."""

import numpy as np
import torch
from torch import nn


class Detector(nn.Module):
    """A box and a score for each cell of a coarse grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wider = 3 * width // 2
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, wider, 3, 2, 1),
            nn.ReLU(),
        )
        self.boxes, self.scores = nn.Conv2d(wider, 4, 1), nn.Conv2d(wider, 1, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body(images)
        return {"boxes": self.boxes(maps), "scores": self.scores(maps).sigmoid()}


def build(width: int = 16) -> nn.Module:
    return Detector(width)


def found_boxes(evaluate, split: str) -> float:
    """Return the share of squares whose cell has the highest score, in percent."""
    generator = np.random.default_rng({"validation": 0, "test": 1}[split])
    images, cells = np.zeros((40, 3, 32, 32), np.float32), generator.integers(0, 8, (40, 2))
    for image, (row, column) in zip(images, cells, strict=True):
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
    scores = evaluate(images)["scores"][:, 0]
    found = scores.reshape(len(scores), -1).argmax(1)
    return 100 * float((found == 8 * cells[:, 0] + cells[:, 1]).mean())
