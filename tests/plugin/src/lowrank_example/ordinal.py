"""Classes in an order, such as ages or grades: an answer is better the nearer it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.core.metric import Metric
from lowrank.tasks.task import Reduction, Task

if TYPE_CHECKING:
    from torch import Tensor


class Ordinal(Task):
    """The expected class, measured by its distance from the label.

    Outputs are logits (N, classes); the answer is the mean of the class numbers, weighted by their
    probabilities.
    """

    name = "ordinal"
    metric = Metric(
        "mae", "mean error", "error", unit="classes", higher_is_better=False, best=0.0, digits=3
    )
    divergence_unit = "squared classes"

    def predictions(self, outputs: Tensor) -> Tensor:
        return _expected_class(outputs).round().long()

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (self.predictions(outputs) - labels).abs()

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the squared error of the expected class."""
        from torch.nn import functional

        return functional.mse_loss(_expected_class(outputs), labels.float(), reduction=reduction)

    def divergence(self, outputs: Tensor, expected: Tensor) -> Tensor:
        return (_expected_class(outputs) - _expected_class(expected)).square().mean()

    def useless_value(self, labels: Tensor) -> float:
        """Return the error of always giving the median, which is the best constant answer."""
        return float((labels - labels.median()).abs().double().mean())


def _expected_class(outputs: Tensor) -> Tensor:
    import torch

    probabilities = outputs.float().softmax(1)
    return probabilities @ torch.arange(outputs.shape[1], device=outputs.device).float()
