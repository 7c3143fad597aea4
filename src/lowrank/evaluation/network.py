"""Measure the metric and the loss of a network in PyTorch on a split."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lowrank.core.background import in_background
from lowrank.core.progress import Progress
from lowrank.data.batches import Batch, EvaluationBatches
from lowrank.data.datasets import Dataset, Split, require_images_match
from lowrank.evaluation.memory_format import memory_format_of
from lowrank.tasks.outputs import mapped, outputs_from
from lowrank.tasks.task import Measured, Task
from lowrank.zoo.forward import evaluation_mode
from lowrank.zoo.registry import NetworkSpec


def measure(task: Task, network: nn.Module, split: Split, spec: NetworkSpec) -> Measured:
    """Return the metrics of a network, in float32, on the device of the network.

    The network runs in evaluation mode, and its mode is restored. Batch sizes are limited, so
    memory does not depend on the number and size of the images.

    Raises
    ------
    UserError
        If the task needs labels and the images have none.
    """
    require_labels(task, split)
    device = next(network.parameters()).device
    with torch.inference_mode(), evaluation_mode(network):
        return task.measure_split(
            split.name,
            lambda inputs: split.of_classes(
                outputs_from(network(mapped(lambda tensor: tensor.to(device), inputs)))
            ),
            split.with_labels(inputs_of(network, split, spec)),
        )


def value_of(task: Task, network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Return the main metric of a network; see `measure`."""
    return measure(task, network, split, spec).values[task.metric.key]


@torch.inference_mode()
def mean_loss(task: Task, network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Return the mean loss over the images of a split, measured like `measure`."""
    if task.needs_labels:
        split.require_labels("measuring the loss")
    total = sum(
        float(task.loss(split.of_classes(outputs), labels, reduction="sum"))
        for outputs, labels in outputs_of(network, split, spec)
    )
    return total / len(split)


def measure_splits(
    task: Task,
    network: nn.Module,
    data: Dataset,
    spec: NetworkSpec,
    splits: Sequence[str] = ("validation", "test"),
) -> dict[str, Measured]:
    """Return the metrics on `validation` (for choices) and `test` (for reports), by split.

    Raises
    ------
    UserError
        If the network cannot be measured on the dataset: see `require_match`; or if the task needs
        labels and the images have none.
    """
    for name in splits:
        require_labels(task, getattr(data, name))
    require_match(task, data, spec)
    if not task.depends_on_split:
        return dict.fromkeys(splits, measure(task, network, getattr(data, splits[0]), spec))
    return {name: measure(task, network, getattr(data, name), spec) for name in splits}


def values_by_split(task: Task, measured: dict[str, Measured]) -> dict[str, float]:
    """Return the values that `measure_splits` measured, in one document.

    The main metric has the name of the split, another metric the name `<split>_<key>`, such as
    `test_top5`.
    """
    main = task.metric.key
    return {name: of_split.values[main] for name, of_split in measured.items()} | {
        f"{name}_{key}": value
        for name, of_split in measured.items()
        for key, value in of_split.values.items()
        if key != main
    }


def text_by_split(task: Task, values: dict[str, float]) -> str:
    """Return the document of `values_by_split` as a text: `validation 92.00 %, test 91.50 %`."""
    metrics = {metric.key: metric for metric in task.metrics}
    return ", ".join(
        f"{name.replace('_', ' ')} {metrics.get(name.partition('_')[2], task.metric).text(value)}"
        for name, value in values.items()
    )


def require_labels(task: Task, split: Split) -> None:
    """Raise UserError if the task needs labels and the images of a split have none."""
    if task.needs_labels:
        split.require_labels(f"measuring {task.metric.noun}")


def require_match(task: Task, data: Dataset, spec: NetworkSpec) -> None:
    """Raise UserError if a network cannot be trained or measured on a dataset.

    This is the case if its outputs do not fit the classes (`Task.require_match`) or its input does
    not fit the images (`require_images_match`).
    """
    if data.test.outputs is None and data.classes:
        task.require_match(
            spec.num_classes, len(data.classes), network=spec.name, dataset=data.name
        )
    require_images_match(data, spec)


@torch.inference_mode()
def outputs_of(
    network: nn.Module, split: Split, spec: NetworkSpec, *, mirrored: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Yield the outputs (N, ...) and labels (N,) of each batch, on the device of the network.

    The network runs in evaluation mode, and in the precision of an enclosing autocast. With
    `mirrored`, images are flipped horizontally.
    """
    with evaluation_mode(network):
        for inputs, labels in split.with_labels(inputs_of(network, split, spec)):
            yield outputs_from(network(inputs.flip(3) if mirrored else inputs)), labels


def inputs_of(network: nn.Module, split: Split, spec: NetworkSpec) -> Iterator[Batch]:
    """Yield the images (N, C, H, W), or other inputs, and labels (N,) of each batch.

    Batches have the device and memory format of the network. Progress is reported: a batch counts
    as done when the next one is requested.
    """
    device, memory_format = next(network.parameters()).device, memory_format_of(network, spec)
    batches, progress = EvaluationBatches(split, spec), Progress(len(split))
    for images, labels in in_background(
        batches.__getitem__, range(len(batches)), torch.get_num_threads()
    ):
        moved = mapped(lambda tensor: tensor.to(device, memory_format=memory_format), images)
        yield moved, labels.to(device)
        progress.advance(len(labels))
