"""Check that a task keeps the contract of `lowrank.tasks.task.Task`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.tasks.task import Measured, Task
from lowrank.testing.contract import Check, require

_IMAGES = 96
_OUTPUTS = 6
# Steps that must improve the metric of random outputs.
_STEPS = 100


def check_task(
    task: Task,
    *,
    outputs: Callable[[int, torch.Generator], Tensor] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Check that a task keeps its contract, on random outputs and labels.

    Parameters
    ----------
    task
        Task to check.
    outputs
        Function that returns random outputs for a number of images, (N, ...). By default normal
        noise with six outputs for each image. Labels are the predictions of other outputs.
    expected_failures
        Checks that this task cannot pass, by their name, with the reason.

    Raises
    ------
    AssertionError
        With a line for each thing that is wrong: what was called, what was found, and what was
        expected. Also for a check that is expected to fail and passes.
    """
    sample = _Sample.of(task, outputs or _normal_noise)
    require(f"task '{task.name}'", CHECKS, sample, expected_failures)


@dataclass(frozen=True)
class _Sample:
    """A task with outputs of two networks, and labels that belong to neither."""

    task: Task
    outputs: Tensor
    others: Tensor
    labels: Tensor

    @classmethod
    def of(cls, task: Task, outputs: Callable[[int, torch.Generator], Tensor]) -> _Sample:
        generator = torch.Generator().manual_seed(0)
        first, second, third = (outputs(_IMAGES, generator) for _ in range(3))
        return cls(task, first, second, task.predictions(third))

    def measured(self, outputs: Tensor, labels: Tensor, *sizes: int) -> Measured:
        """Measure a network that returns `outputs`, in batches of these sizes."""
        numbers = torch.arange(len(outputs)).split(sizes or len(outputs))
        batches = [(rows[:, None, None, None], labels[rows]) for rows in numbers]
        return self.task.measure(lambda rows: outputs[rows.flatten()], batches)

    def value(self, outputs: Tensor, labels: Tensor) -> float:
        return self.measured(outputs, labels).values[self.task.metric.key]


def _normal_noise(images: int, generator: torch.Generator) -> Tensor:
    return torch.randn(images, _OUTPUTS, generator=generator)


def _names(sample: _Sample) -> Iterator[str]:
    metrics = sample.task.metrics
    for metric in metrics:
        if not re.fullmatch(r"[a-z][a-z0-9]*", metric.key):
            yield (
                f"a metric has the key {metric.key!r}; expected lower-case letters and digits, "
                "because it becomes a part of names in documents"
            )
        if not (metric.name and metric.noun):
            yield f"the metric {metric.key!r} has an empty `name` or `noun`; expected texts"
    keys = [metric.key for metric in metrics]
    if len(set(keys)) < len(keys):
        yield f"the metrics have the keys {', '.join(keys)}; expected different keys"


def _perfect_answers(sample: _Sample) -> Iterator[str]:
    task = sample.task
    found = sample.value(sample.outputs, task.predictions(sample.outputs))
    if abs(found - task.metric.best) > 1e-6 * max(1.0, abs(task.metric.best)):
        yield (
            "with labels that equal `predictions(outputs)`, the metric is "
            f"{task.metric.text(found, 4)}; expected `metric.best`, "
            f"{task.metric.text(task.metric.best, 4)}"
        )


def _direction(sample: _Sample) -> Iterator[str]:
    metric, found = sample.task.metric, sample.value(sample.outputs, sample.labels)
    if not metric.is_better(metric.best, found):
        yield (
            f"with labels of another network, the metric is {metric.text(found, 4)}; expected a "
            f"worse value than `metric.best`, {metric.text(metric.best, 4)}, with "
            f"`higher_is_better = {metric.higher_is_better}`"
        )


def _shapes(sample: _Sample) -> Iterator[str]:
    task, images = sample.task, len(sample.outputs)
    results = {
        "predictions(outputs)": task.predictions(sample.outputs),
        "scores(outputs, labels)": task.scores(sample.outputs, sample.labels),
        "same(outputs, expected)": task.same(sample.outputs, sample.others),
        **{
            f"more_scores(outputs, labels)[{key!r}]": scores
            for key, scores in task.more_scores(sample.outputs, sample.labels).items()
        },
    }
    for call, result in results.items():
        shape = tuple(result.shape)
        if not call.startswith("predictions") and shape != (images,):
            yield f"{call} has the shape {shape}; expected one value for each image, ({images},)"
        elif shape[:1] != (images,):
            yield f"{call} has the shape {shape}; expected ({images}, ...), the images first"
    known = {metric.key for metric in task.more_metrics}
    unknown = task.more_scores(sample.outputs, sample.labels).keys() - known
    if unknown:
        yield f"more_scores has the keys {', '.join(unknown)}; expected keys of `more_metrics`"


def _batches(sample: _Sample) -> Iterator[str]:
    whole = sample.measured(sample.outputs, sample.labels)
    parts = sample.measured(sample.outputs, sample.labels, 1, 7, len(sample.outputs) - 8)
    for key, value in whole.values.items():
        found = parts.values.get(key, float("nan"))
        if not abs(found - value) <= 1e-6 * max(1.0, abs(value)):
            yield (
                f"the metric {key} is {value:.6g} in one batch and {found:.6g} in three batches of "
                "different sizes; expected equal values"
            )


def _precision(sample: _Sample) -> Iterator[str]:
    half = sample.task.scores(sample.outputs.bfloat16(), sample.labels)
    if not torch.isfinite(half.double()).all():
        yield "scores of outputs in bfloat16 are not finite; training under autocast needs them"
    from_numpy = torch.from_numpy(sample.outputs.numpy().copy())
    with torch.inference_mode():
        same = sample.task.scores(from_numpy, sample.labels)
    if not torch.equal(same, sample.task.scores(sample.outputs, sample.labels)):
        yield "scores of outputs of ONNX Runtime differ from those of equal outputs of PyTorch"


def _loss(sample: _Sample) -> Iterator[str]:
    task, outputs = sample.task, sample.outputs.clone().requires_grad_()
    loss = task.loss(outputs, sample.labels)
    if loss.shape != () or not torch.isfinite(loss):
        yield f"loss(outputs, labels) is {loss}; expected a finite scalar"
        return
    if not loss.requires_grad:
        yield "loss(outputs, labels) has no gradient; expected a differentiable function of outputs"
        return
    (gradient,) = torch.autograd.grad(loss, outputs)
    if not torch.isfinite(gradient).all() or not gradient.any():
        yield "the gradient of the loss is zero or not finite; expected finite values"
    total = float(task.loss(outputs.detach(), sample.labels, reduction="sum"))
    expected = float(loss.detach()) * len(outputs)
    if abs(total - expected) > 1e-4 * max(1.0, abs(expected)):
        yield (
            f"loss(..., reduction='sum') is {total:.6g}; expected the mean loss times the number "
            f"of images, {expected:.6g}"
        )
    if task.smooths_labels and not torch.isfinite(
        task.loss(outputs, sample.labels, label_smoothing=0.1)
    ):
        yield "loss(..., label_smoothing=0.1) is not finite"


def _training(sample: _Sample) -> Iterator[str]:
    """Descend the loss with the outputs themselves as weights."""
    task, metric = sample.task, sample.task.metric
    outputs = _descended(sample, lambda current: task.loss(current, sample.labels))
    before = sample.value(sample.outputs, sample.labels)
    after = sample.value(outputs, sample.labels)
    if not metric.is_better(after, before):
        yield (
            f"{_STEPS} steps of gradient descent on the loss change the metric from "
            f"{metric.text(before, 4)} to {metric.text(after, 4)}; expected a better value, with "
            f"`higher_is_better = {metric.higher_is_better}`"
        )


def _divergence(sample: _Sample) -> Iterator[str]:
    task, outputs = sample.task, sample.outputs
    noise = sample.others - outputs
    equal, near, far = (
        float(task.divergence(outputs + share * noise, outputs)) for share in (0.0, 0.1, 1.0)
    )
    if not abs(equal) <= 1e-6:
        yield f"divergence(outputs, outputs) is {equal:.3g}; expected 0 for equal outputs"
    if not 0 < near < far < float("inf"):
        yield (
            f"the divergence is {near:.3g} for a tenth of a change and {far:.3g} for all of it; "
            "expected finite values above 0 that grow with the change"
        )
    halves = [
        float(task.divergence(sample.others[rows], outputs[rows]))
        for rows in torch.arange(len(outputs)).chunk(2)
    ]
    if not abs(sum(halves) / 2 - far) <= 1e-4 * abs(far):
        yield (
            f"the divergence of all images is {far:.6g}, and the mean of its halves "
            f"{sum(halves) / 2:.6g}; expected a mean over images"
        )


def _imitation(sample: _Sample) -> Iterator[str]:
    """Descend the loss of distillation: outputs approach those of the original."""
    task, expected = sample.task, sample.others

    def loss_of(outputs: Tensor) -> Tensor:
        return task.imitation_loss(outputs, expected, temperature=2.0)

    before, after = (
        float(task.divergence(outputs, expected))
        for outputs in (sample.outputs, _descended(sample, loss_of))
    )
    if not after < 0.5 * before:
        yield (
            f"{_STEPS} steps of gradient descent on `imitation_loss` change the divergence from "
            f"{before:.3g} to {after:.3g}; expected less than half"
        )


def _useless_value(sample: _Sample) -> Iterator[str]:
    task, metric = sample.task, sample.task.metric
    useless = task.useless_value(sample.labels)
    if useless is None:
        return
    if not metric.is_better(metric.best, useless):
        yield (
            f"useless_value(labels) is {metric.text(useless, 4)}; expected a worse value than "
            f"`metric.best`, {metric.text(metric.best, 4)}"
        )
    constants = (
        sample.value(row.expand_as(sample.outputs), sample.labels) for row in sample.outputs
    )
    for value in constants:
        if metric.loss(value, useless) > 1e-6 * max(1.0, abs(useless)):
            yield (
                f"a network with the same outputs for all images has {metric.text(value, 4)}, "
                f"better than useless_value(labels), {metric.text(useless, 4)}; expected the best "
                "value of such a network"
            )
            return


def _same(sample: _Sample) -> Iterator[str]:
    task = sample.task
    if not task.same(sample.outputs, sample.outputs).all():
        yield "same(outputs, outputs) is not True for all images"
    if task.same(sample.outputs, sample.others).all():
        yield "same(outputs, others) is True for all images of two different networks"


def _inputs_are_kept(sample: _Sample) -> Iterator[str]:
    task, outputs, labels = sample.task, sample.outputs.clone(), sample.labels.clone()
    task.scores(outputs, labels)
    task.loss(outputs, labels)
    task.divergence(outputs, sample.others)
    if not (torch.equal(outputs, sample.outputs) and torch.equal(labels, sample.labels)):
        yield "a method changes its arguments in place; expected unchanged outputs and labels"


def _descended(sample: _Sample, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the outputs after steps of Adam on a loss."""
    outputs = sample.outputs.clone().requires_grad_()
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss_of(outputs).backward()
        optimizer.step()
    return outputs.detach()


#: The checks by name. Each one yields what is wrong, without a full stop.
CHECKS: dict[str, Check[_Sample]] = {
    "names": _names,
    "shapes": _shapes,
    "perfect_answers": _perfect_answers,
    "direction": _direction,
    "batches": _batches,
    "precision": _precision,
    "loss": _loss,
    "training": _training,
    "divergence": _divergence,
    "imitation": _imitation,
    "useless_value": _useless_value,
    "same": _same,
    "inputs_are_kept": _inputs_are_kept,
}
