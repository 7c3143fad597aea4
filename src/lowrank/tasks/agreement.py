"""Agreement with the original network: how far its outputs are from the original's, unlabeled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank.core.metric import OUTPUT_ERROR, Metric
from lowrank.tasks.outputs import by_name, float_pairs
from lowrank.tasks.task import Measured, Reduction, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lowrank.tasks.outputs import Outputs

_SAME = Metric("same", "agreement", "agreement with the original")
_KL = Metric("kl", "KL divergence", "divergence from the original", "nats", False, 0.0, 4)

# Largest relative error of an image up to which two networks give the same answer.
_SAME_ANSWER = 1e-2

# Smallest squared norm by which the error of an output is divided.
_SMALLEST_NORM = 1e-12


class Agreement(Task):
    """The outputs of the original network are the labels, so no labels are needed.

    The metric is the relative error of the outputs: the norm of the difference, divided by the norm
    of the original output around its mean over the images. Of several outputs, the one with the
    largest error counts. For outputs that are distributions over classes, the share of equal
    answers and the Kullback-Leibler divergence are reported, too.
    """

    name = "agreement"
    metric = OUTPUT_ERROR
    more_metrics: ClassVar[tuple[Metric, ...]] = (_SAME, _KL)
    needs_labels = False
    compares_with_original = True

    def predictions(self, outputs: Outputs) -> Outputs:
        return outputs

    def scores(self, outputs: Outputs, labels: Outputs) -> Tensor:
        return _relative_errors(outputs, labels).sqrt()

    def loss(
        self,
        outputs: Outputs,
        labels: Outputs,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the squared relative error of each image; `labels` are the expected outputs."""
        errors = _relative_errors(outputs, labels)
        return errors.sum() if reduction == "sum" else errors.mean()

    def divergence(self, outputs: Outputs, expected: Outputs) -> Tensor:
        """Return the mean over images and outputs of the divergence of each output.

        For a distribution, it is the Kullback-Leibler divergence in nats, the mean over positions;
        otherwise half of the squared relative error. Both grow with the square of small errors.
        """
        return _divergences(outputs, expected).mean()

    def imitation_loss(self, outputs: Outputs, expected: Outputs, *, temperature: float) -> Tensor:
        """Return the divergence, for distributions the mean of both directions (Jeffreys 1946).

        The divergence from the original alone tolerates probability where the original has next to
        none, and probabilities that are too low to decide. A text recognition network trained with
        it left out characters; see benchmarks/onnx_fine_tuning.py. Outputs that are probabilities
        have no temperature.
        """
        return _divergences(outputs, expected, in_both_directions=True).mean()

    def useless_value(self, labels: Any) -> float | None:
        """Return the error of a network that always returns the mean of the outputs, 100 %."""
        return 100.0

    def same(self, outputs: Outputs, expected: Outputs) -> Tensor:
        """Return for each image whether all positions have the same class.

        For outputs that are no distributions, their relative error decides.
        """
        import torch

        from lowrank.core.output_change import class_axis

        equal = []
        for actual, reference in float_pairs(outputs, expected).values():
            axis = class_axis(reference)
            if axis is None:
                error = _relative_errors({"": actual}, {"": reference})
                equal.append(error.sqrt() <= _SAME_ANSWER)
            else:
                answers = actual.argmax(axis) == reference.argmax(axis)
                equal.append(answers.reshape(len(answers), -1).all(1))
        return torch.stack(equal).all(0)

    def measure(
        self,
        network: Callable[[Any], Outputs],
        batches: Iterable[tuple[Any, Outputs]],
    ) -> Measured:
        """Return the metrics of a network; the labels in `batches` are the original's outputs."""
        from lowrank.core.output_change import OutputSums, ReferenceOutputs

        sums, errors = OutputSums(), _ErrorsByImage()
        for inputs, expected in batches:
            outputs = network(inputs)
            sums.add(_arrays(outputs), ReferenceOutputs(_arrays(expected)))
            errors.add(outputs, expected)
        changes = sums.changes()
        worst = max(changes, key=lambda name: changes[name].relative_error)
        error = changes[worst].relative_error
        values = {self.metric.key: 100.0 * error}
        shares = [
            change.same_percent for change in changes.values() if change.same_percent is not None
        ]
        if shares:
            values[_SAME.key] = min(shares)
            values[_KL.key] = max(
                change.divergence for change in changes.values() if change.same_percent is not None
            )
        return Measured(values, errors.scores(worst, error))


class _ErrorsByImage:
    """The squared error of each output for each image."""

    def __init__(self) -> None:
        self._squared: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, outputs: Outputs, expected: Outputs) -> None:
        """Add the images of a batch."""
        for name, (actual, reference) in float_pairs(outputs, expected).items():
            difference = (actual.double() - reference.double()).flatten(1)
            squared = difference.square().sum(1).cpu().numpy()
            self._squared.setdefault(name, []).append(squared)

    def scores(self, name: str, error: float) -> NDArray[np.float64]:
        """Return a score for each image, whose mean is the relative error of an output.

        The error is the root of a mean, not a mean over images. The scores are its linear
        approximation (the delta method), so they give the right standard error.
        """
        import numpy as np

        squared = np.nan_to_num(np.concatenate(self._squared[name]), nan=1e30, posinf=1e30)
        mean = squared.mean()
        if not mean or not error:
            return np.full(len(squared), error)
        return error * (1 + (squared / mean - 1) / 2)


def _arrays(outputs: Outputs) -> dict[str, NDArray[np.generic]]:
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        for name, tensor in by_name(outputs).items()
    }


def _relative_errors(outputs: Outputs, expected: Outputs) -> Tensor:
    """Return the squared relative error of each image, the mean over outputs, (N,)."""
    import torch

    errors = []
    for actual, reference in float_pairs(outputs, expected).values():
        reference = reference.float()
        difference = (actual.float() - reference).flatten(1).square().sum(1)
        norm = reference.flatten(1).square().sum(1).clamp(min=_SMALLEST_NORM)
        errors.append(difference / norm)
    return torch.stack(errors).mean(0)


def _divergences(
    outputs: Outputs, expected: Outputs, *, in_both_directions: bool = False
) -> Tensor:
    """Return the divergence of each image, the mean over outputs, (N,)."""
    import torch

    from lowrank.core.output_change import SMALLEST_PROBABILITY, class_axis

    divergences = []
    for actual, reference in float_pairs(outputs, expected).values():
        axis = class_axis(reference.float())
        if axis is None:
            divergences.append(_relative_errors({"": actual}, {"": reference}) / 2)
            continue
        p, q = (tensor.float().clamp(min=SMALLEST_PROBABILITY) for tensor in (reference, actual))
        weight = (p - q) / 2 if in_both_directions else p
        nats = (weight * (p.log() - q.log())).sum(axis)
        divergences.append(nats.flatten(1).mean(1) if nats.ndim > 1 else nats)
    return torch.stack(divergences).mean(0)


ENTRIES = (Agreement(),)
