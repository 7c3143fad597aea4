"""The interface of tasks: what "accurate" means for a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowrank.core.metric import Metric
from lowrank.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Measured:
    """The metrics of a network on some images.

    Parameters
    ----------
    values
        Value by the key of the metric, the main metric first.
    scores
        Main metric of each image, (N,). None if the metric is no mean over images; differences of
        two networks then have no standard error.
    """

    values: dict[str, float]
    scores: NDArray[np.float64] | None = None


class Task(ABC):
    """What "accurate" means for a network: its loss, its metric and how its answers differ.

    Outputs are what the network returns for a batch, a tensor (N, ...) whose first axis is the
    image, or for a network with several outputs a dictionary of such tensors; outputs of ONNX
    Runtime become tensors on the CPU. A module of a task imports NumPy and PyTorch inside
    functions, because reports and the graph read its metric without them.
    """

    #: Name in params.yaml.
    name: ClassVar[str]
    #: Main metric.
    metric: ClassVar[Metric]
    #: Further metrics, which are only reported.
    more_metrics: ClassVar[tuple[Metric, ...]] = ()
    #: Whether the metric compares answers with labels.
    needs_labels: ClassVar[bool] = True
    #: Whether the loss uses `label_smoothing`.
    smooths_labels: ClassVar[bool] = False
    #: Whether the labels are the outputs of the original network on the same images.
    compares_with_original: ClassVar[bool] = False
    #: Whether `scores` is the metric of a batch. Otherwise the training curve has only the loss.
    has_scores: ClassVar[bool] = True
    #: Unit of the divergence, such as nats.
    divergence_unit: ClassVar[str] = ""

    def require_match(self, outputs: int, classes: int, *, network: str, dataset: str) -> None:  # noqa: B027
        """Raise UserError if a network cannot do this task on a dataset.

        By default, any number of outputs is accepted.

        Parameters
        ----------
        outputs
            Number of outputs of the network for one image.
        classes
            Number of classes of the dataset.
        network, dataset
            Their names, for the message.
        """

    def accepts(self, outputs: object) -> bool:
        """Return whether the outputs of a network for a batch are outputs of this task."""
        return True

    @abstractmethod
    def predictions(self, outputs: Any) -> Any:
        """Return the answers in the form of labels, (N,) or (N, ...).

        A network whose predictions equal the labels has the best value of the metric.
        """

    @abstractmethod
    def scores(self, outputs: Any, labels: Any) -> Tensor:
        """Return the main metric of each image, (N,).

        The metric is the mean of the scores, times 100 for a metric in percent.
        """

    def more_scores(self, outputs: Any, labels: Any) -> dict[str, Tensor]:
        """Return further metrics of each image, (N,), by the key of the metric.

        A metric that says nothing about these outputs can be left out.
        """
        return {}

    @abstractmethod
    def loss(
        self,
        outputs: Any,
        labels: Any,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the training loss over a batch, a scalar: the mean or the sum over images."""

    @abstractmethod
    def divergence(self, outputs: Any, expected: Any) -> Tensor:
        """Return how far outputs are from the expected ones, a scalar: the mean over images.

        It is 0 for equal outputs, grows with the error and needs no labels. Ranks and nodes in
        int8 are chosen by it.
        """

    @abstractmethod
    def useless_value(self, labels: Any) -> float | None:
        """Return the main metric of the best network that gives the same answer for all images.

        None if it is not known.
        """

    def imitation_loss(self, outputs: Any, expected: Any, *, temperature: float) -> Tensor:
        """Return the loss of distillation, a scalar: the difference from the original's outputs.

        By default the mean squared error, which has no temperature.
        """
        from torch.nn import functional

        return functional.mse_loss(outputs, expected)

    def same(self, outputs: Any, expected: Any) -> Tensor:
        """Return for each image whether two networks give the same answer, bool (N,)."""
        equal = self.predictions(outputs) == self.predictions(expected)
        return equal.reshape(len(equal), -1).all(1)

    def probabilities(self, outputs: Any, answers: Any) -> Tensor | None:
        """Return the probability that a network gives to each of some answers, (N,).

        None if the outputs give no probabilities.

        Parameters
        ----------
        outputs
            Outputs of the network.
        answers
            Answers in the form of `predictions`.
        """
        return None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics, the main one first."""
        return (self.metric, *self.more_metrics)

    def measure(
        self,
        network: Callable[[Any], Any],
        batches: Iterable[tuple[Any, Any]],
    ) -> Measured:
        """Return the metrics of a network, given as a function from images to outputs.

        Parameters
        ----------
        network
            Function that returns the outputs for a batch of images, (N, C, H, W), or other inputs.
        batches
            Inputs and labels, (N,), of each batch.
        """
        import numpy as np

        images = 0
        totals: dict[str, float] = {}
        scores: list[NDArray[np.float64]] = []
        for inputs, labels in batches:
            outputs = network(inputs)
            of_batch = self.scores(outputs, labels).double()
            scores.append(of_batch.cpu().numpy())
            by_key = {self.metric.key: of_batch} | self.more_scores(outputs, labels)
            for key, scores_of_key in by_key.items():
                totals[key] = totals.get(key, 0.0) + float(scores_of_key.double().sum())
            images += len(labels)
        known = {metric.key: metric for metric in self.metrics}
        values = {key: known[key].value(total, images) for key, total in totals.items()}
        return Measured(values, np.concatenate(scores))

    @property
    def depends_on_split(self) -> bool:
        """Whether the metric may differ between the splits of a dataset."""
        return True

    def measure_split(
        self,
        split: str,
        network: Callable[[Any], Any],
        batches: Iterable[tuple[Any, Any]],
    ) -> Measured:
        """Return the metrics of a network on a split: `train`, `validation` or `test`.

        By default, the split does not matter; see `measure`.
        """
        return self.measure(network, batches)

    def drop(self, before: Measured, after: Measured) -> tuple[float, float]:
        """Return how much worse `after` is on the same images, and the standard error of that.

        The standard error is 0 for a metric that is no mean over images.
        """
        if before.scores is None or after.scores is None:
            key = self.metric.key
            return self.metric.loss(before.values[key], after.values[key]), 0.0
        return self.metric.drop(before.scores, after.scores)

    def require_label_loss(self) -> None:
        """Raise UserError if this task has no use for labels in training."""
        if not self.needs_labels:
            raise UserError(
                f"the task '{self.name}' has no loss for labels: a network learns only from the "
                "outputs of the original. Set `finetune.distill.weight` to 1."
            )

    def require_smoothing(self, label_smoothing: float) -> None:
        """Raise UserError for `label_smoothing`, if the loss of this task does not use it."""
        if label_smoothing and not self.smooths_labels:
            raise UserError(
                f"`label_smoothing` is {label_smoothing:g}, but the loss of the task '{self.name}' "
                "has no classes over which to spread a probability. Set it to 0."
            )
