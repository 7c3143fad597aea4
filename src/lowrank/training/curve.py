"""Training curve: mean loss and accuracy over groups of steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.core.metric import Metric


@dataclass(frozen=True)
class CurvePoint:
    """One row of the training curve: means since the previous row.

    `train_percent` and `validation_percent` are values of the task's metric; files that other
    programs read have these names. They are measured with the weights of that step, not with
    averaged weights. `train_percent` is None for a metric that is not measured on batches.
    """

    step: int
    learning_rate: float
    loss: float
    train_percent: float | None
    validation_percent: float | None = None


class Window:
    """Sums of losses and scores, kept on the device so that steps do not wait for it."""

    def __init__(
        self,
        device: torch.device,
        metric: Metric,
        loss: float = 0.0,
        score: float = 0.0,
        images: int = 0,
        steps: int = 0,
    ) -> None:
        self._loss = torch.tensor(loss, dtype=torch.float64, device=device)
        self._score = torch.tensor(score, dtype=torch.float64, device=device)
        self._metric = metric
        self._images, self._steps = images, steps

    def add(self, loss: Tensor, scores: Tensor | None) -> None:
        """Add a step: its mean loss and the score of each image, (N,), if the task has scores."""
        self._loss += loss
        if scores is not None:
            self._score += scores.sum()
            self._images += len(scores)
        self._steps += 1

    def sums(self) -> tuple[float, float, int, int]:
        """Return the sums of losses and scores, and the numbers of images and steps."""
        return float(self._loss), float(self._score), self._images, self._steps

    def means(self, rows: Sequence[Sequence[float]] | None = None) -> tuple[float, float | None]:
        """Return the mean loss and the value of the metric; None without scores.

        `rows` are the `sums` of all processes; by default, only these.
        """
        loss, score, images, steps = map(sum, zip(*(rows or [self.sums()]), strict=True))
        return loss / steps, self._metric.value(score, round(images)) if images else None
