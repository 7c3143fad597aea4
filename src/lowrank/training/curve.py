"""Training curve: mean loss and accuracy over groups of steps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvePoint:
    """One row of the training curve: means since the previous row.

    Accuracies are measured with the weights of that step, not with averaged weights.
    """

    step: int
    learning_rate: float
    loss: float
    train_percent: float
    validation_percent: float | None = None


class Window:
    """Sums of loss and hits, kept on the device so that steps do not wait for it."""

    def __init__(
        self,
        device: torch.device,
        loss: float = 0.0,
        hits: int = 0,
        images: int = 0,
        steps: int = 0,
    ) -> None:
        self._loss = torch.tensor(loss, dtype=torch.float64, device=device)
        self._hits = torch.tensor(hits, device=device)
        self._images, self._steps = images, steps

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step: its mean loss, logits (N, classes) and labels (N,)."""
        self._loss += loss
        self._hits += (logits.argmax(1) == labels).sum()
        self._images += len(labels)
        self._steps += 1

    def sums(self) -> tuple[float, int, int, int]:
        """Return the sums of losses and hits, and the numbers of images and steps."""
        return float(self._loss), int(self._hits), self._images, self._steps

    def means(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy in percent."""
        loss, hits, images, steps = self.sums()
        return loss / steps, 100.0 * hits / images
