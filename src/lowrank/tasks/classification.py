"""Classification: the network has one output for each class, and the largest one is its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.core.metric import Metric
from lowrank.errors import UserError
from lowrank.tasks.task import Reduction, Task

if TYPE_CHECKING:
    from torch import Tensor

# Top-5 accuracy is not reported for this number of classes or fewer: it is nearly always high.
_CLASSES_WITHOUT_TOP5 = 10

_TOP5 = Metric("top5", "top-5", "top-5 accuracy")


class Classification(Task):
    """One class for each image, measured by top-1 accuracy.

    Outputs are logits (N, classes); labels are classes (N,).
    """

    name = "classification"
    metric = Metric("top1", "top-1", "accuracy")
    more_metrics = (_TOP5,)
    smooths_labels = True
    divergence_unit = "nats"

    def require_match(self, outputs: int, classes: int, *, network: str, dataset: str) -> None:
        if not outputs:
            raise UserError(
                f"the network {network} does not return logits, one value for each class: (images, "
                "classes). For a classifier, make it return only the logits, and keep the batch "
                "axis (flatten(1), not squeeze()). For another network, set `task: agreement`, or "
                "`metric` to your own metric, under `checkpoint` in params.yaml."
            )
        if classes != outputs:
            raise UserError(
                f"the dataset {dataset} has {classes} classes, but the network {network} "
                f"has {outputs}. Use a network for these classes, or set "
                f"`dataset.{dataset}.outputs` to the network output for each class."
            )

    def accepts(self, outputs: object) -> bool:
        shape: tuple[int, ...] = getattr(outputs, "shape", ())
        return len(shape) == 2 and shape[1] >= 2

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def probabilities(self, outputs: Tensor, answers: Tensor) -> Tensor:
        probabilities = outputs.double().softmax(1)
        return probabilities.gather(1, answers[:, None])[:, 0]

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.argmax(1) == labels

    def more_scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if outputs.shape[1] <= _CLASSES_WITHOUT_TOP5:
            return {}
        return {_TOP5.key: (outputs.topk(5).indices == labels[:, None]).any(1)}

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the cross-entropy, in nats."""
        from torch.nn import functional

        return functional.cross_entropy(
            outputs, labels, label_smoothing=label_smoothing, reduction=reduction
        )

    def divergence(self, outputs: Tensor, expected: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of the class probabilities, in nats.

        It grows with the square of small errors. A loss with labels can decrease by chance when a
        layer gets worse.
        """
        return _divergence(outputs, expected)

    def imitation_loss(self, outputs: Tensor, expected: Tensor, *, temperature: float) -> Tensor:
        """Return the divergence of the softmax at temperature T, times T^2.

        The scale of its gradient then does not depend on T (Hinton et al. 2015, section 2).
        """
        return temperature**2 * _divergence(outputs / temperature, expected / temperature)

    def useless_value(self, labels: Tensor) -> float:
        """Return the accuracy of always predicting the most frequent class, in percent."""
        return self.metric.value(int(labels.bincount().max()), len(labels))


def _divergence(outputs: Tensor, expected: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.kl_div(
        functional.log_softmax(outputs, 1),
        functional.log_softmax(expected, 1),
        reduction="batchmean",
        log_target=True,
    )


ENTRIES = (Classification(),)
