"""Test that the public check of tasks finds mistakes, and says what is wrong."""

import pytest
import torch
from torch.nn import functional

from lowrank.core.metric import Metric
from lowrank.tasks.classification import Classification
from lowrank.testing import check_task


class WrongDirection(Classification):
    metric = Metric("top1", "top-1", "accuracy", higher_is_better=False)


class MeanOfBatches(Classification):
    """Weights each batch equally, so that small batches count too much."""

    def scores(self, outputs, labels):
        hits = super().scores(outputs, labels).double()
        return hits / len(hits)


class LossRises(Classification):
    def loss(self, outputs, labels, **options):
        return -super().loss(outputs, labels, **options)


class LossIgnoresReduction(Classification):
    def loss(self, outputs, labels, *, label_smoothing=0.0, reduction="mean"):
        return functional.cross_entropy(outputs, labels)


class NoGradient(Classification):
    def loss(self, outputs, labels, *, label_smoothing=0.0, reduction="mean"):
        return (outputs.argmax(1) != labels).double().mean()


class DivergenceOfAll(Classification):
    def divergence(self, outputs, expected):
        return super().divergence(outputs, expected) * len(outputs)


class DivergenceWithOffset(Classification):
    def divergence(self, outputs, expected):
        return super().divergence(outputs, expected) + 0.1


class GuessesOnly(Classification):
    """States the accuracy of random guesses, which a constant answer can exceed."""

    def useless_value(self, labels):
        return 1.0


class ChangesItsArguments(Classification):
    def scores(self, outputs, labels):
        outputs += 1.0
        return super().scores(outputs, labels)


class Raises(Classification):
    def same(self, outputs, expected):
        raise RuntimeError("not written")


class WrongShape(Classification):
    def scores(self, outputs, labels):
        return super().scores(outputs, labels)[:, None]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (WrongDirection(), r"direction: .* expected a worse value .* `higher_is_better = False`"),
        (MeanOfBatches(), r"batches: the metric top1 is .* in one batch and .* in three batches"),
        (LossRises(), r"training: 100 steps .* expected a better value"),
        (LossIgnoresReduction(), r"loss: .*reduction='sum'.* expected the mean loss times"),
        (NoGradient(), r"loss: .* has no gradient"),
        (DivergenceOfAll(), r"divergence: the divergence of all images .* expected a mean"),
        (DivergenceWithOffset(), r"divergence\(outputs, outputs\) is 0\.1; expected 0"),
        (GuessesOnly(), r"useless_value: a network with the same outputs .* better than useless"),
        (ChangesItsArguments(), r"inputs_are_kept: a method changes its arguments"),
        (Raises(), r"same: RuntimeError: not written; expected no error"),
        (WrongShape(), r"shapes: scores\(outputs, labels\) has the shape \(96, 1\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Classification) else "",
)
def test_a_broken_task_is_found(task, message):
    with pytest.raises(AssertionError, match=message) as error:
        check_task(task)
    assert str(error.value).startswith("task 'classification' breaks its contract:")


def test_an_expected_failure_carries_a_reason_and_must_fail():
    check_task(GuessesOnly(), expected_failures={"useless_value": "guesses, by design"})
    with pytest.raises(AssertionError, match="same: passed, but is expected to fail: a reason"):
        check_task(Classification(), expected_failures={"same": "a reason"})
    with pytest.raises(ValueError, match="no check is named top1"):
        check_task(Classification(), expected_failures={"top1": "a reason"})


def test_outputs_can_have_any_shape():
    class PerPixel(Classification):
        """A class for each pixel; outputs (N, classes, H, W), labels (N, H, W)."""

        def scores(self, outputs, labels):
            return (outputs.argmax(1) == labels).double().mean((1, 2))

        def loss(self, outputs, labels, *, label_smoothing=0.0, reduction="mean"):
            losses = functional.cross_entropy(outputs, labels, reduction="none").mean((1, 2))
            return losses.sum() if reduction == "sum" else losses.mean()

        def divergence(self, outputs, expected):
            return super().divergence(outputs, expected) / outputs[0, 0].numel()

        def useless_value(self, labels):
            # The best constant picture: the most frequent class of each pixel.
            return 100.0 * float((labels == labels.mode(0).values).double().mean())

    def outputs(images, generator):
        return torch.randn(images, 3, 4, 4, generator=generator)

    check_task(PerPixel(), outputs=outputs)
