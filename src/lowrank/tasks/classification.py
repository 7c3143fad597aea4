"""Measure the accuracy and loss of a network on a split."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.core.progress import Progress
from lowrank.data.background import in_background
from lowrank.data.batches import Batch, EvaluationBatches
from lowrank.data.datasets import Dataset, Split, require_match
from lowrank.tasks.memory_format import memory_format_of
from lowrank.zoo.forward import evaluation_mode
from lowrank.zoo.registry import NetworkSpec

# Top-5 accuracy is not reported for this number of classes or fewer: it is nearly always high.
_CLASSES_WITHOUT_TOP5 = 10


class Hits:
    """Counter of images whose class is the top-1 prediction or among the top-5 predictions."""

    def __init__(self) -> None:
        self._images, self._hits = 0, {}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, classes), labels (N,)."""
        predictions = {"top1": logits.argmax(1, keepdim=True)}
        if logits.shape[1] > _CLASSES_WITHOUT_TOP5:
            predictions["top5"] = logits.topk(5).indices
        self._images += len(labels)
        for name, classes in predictions.items():
            hits = int((classes == labels[:, None]).sum())
            self._hits[name] = self._hits.get(name, 0) + hits

    def percent(self) -> dict[str, float]:
        """Return `top1` and, for more than ten classes, `top5`, in percent of the images."""
        return {name: 100.0 * hits / self._images for name, hits in self._hits.items()}


def topk_percent(network: nn.Module, split: Split, spec: NetworkSpec) -> dict[str, float]:
    """Return the accuracy in percent, in float32, on the device of the network.

    The network runs in evaluation mode, and its mode is restored. Batch sizes are limited, so
    memory does not depend on the number and size of the images.

    Returns
    -------
    dict
        `top1` and, for more than ten classes, `top5`.

    Raises
    ------
    UserError
        If the images have no labels.
    """
    split.require_labels("measuring accuracy")
    hits = Hits()
    for logits, labels in outputs_of(network, split, spec):
        hits.add(split.of_classes(logits), labels)
    return hits.percent()


def top1_percent(network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Return the top-1 accuracy in percent; see `topk_percent`."""
    return topk_percent(network, split, spec)["top1"]


@torch.inference_mode()
def mean_loss(network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Return the mean cross-entropy over the images of a split, measured like `topk_percent`."""
    split.require_labels("measuring the loss")
    total = sum(
        float(functional.cross_entropy(split.of_classes(logits), labels, reduction="sum"))
        for logits, labels in outputs_of(network, split, spec)
    )
    return total / len(split)


def accuracy_percent(
    network: nn.Module,
    data: Dataset,
    spec: NetworkSpec,
    splits: Sequence[str] = ("validation", "test"),
) -> dict[str, float]:
    """Return the accuracy in percent on `validation` (for choices) and `test` (for reports).

    Returns
    -------
    dict
        Top-1 accuracy by split name. For more than ten classes also top-5 accuracy, as
        `validation_top5` and `test_top5`.

    Raises
    ------
    UserError
        If the network cannot be measured on the dataset: see `require_match`.
    """
    require_match(data, spec)
    by_split = {name: topk_percent(network, getattr(data, name), spec) for name in splits}
    return {name: percent["top1"] for name, percent in by_split.items()} | {
        f"{name}_top5": percent["top5"] for name, percent in by_split.items() if "top5" in percent
    }


@torch.inference_mode()
def outputs_of(
    network: nn.Module, split: Split, spec: NetworkSpec, *, mirrored: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits (N, outputs) and labels (N,) of each batch, on the device of the network.

    The network runs in evaluation mode, and in the precision of an enclosing autocast. With
    `mirrored`, images are flipped horizontally.
    """
    with evaluation_mode(network):
        for inputs, labels in inputs_of(network, split, spec):
            yield network(inputs.flip(3) if mirrored else inputs), labels


def inputs_of(network: nn.Module, split: Split, spec: NetworkSpec) -> Iterator[Batch]:
    """Yield the images (N, C, H, W) and labels (N,) of each batch, ready for the network.

    Batches have the device and memory format of the network. Progress is reported: a batch counts
    as done when the next one is requested.
    """
    device, memory_format = next(network.parameters()).device, memory_format_of(network, spec)
    batches, progress = EvaluationBatches(split, spec), Progress(len(split))
    for images, labels in in_background(
        batches.__getitem__, range(len(batches)), torch.get_num_threads()
    ):
        yield images.to(device, memory_format=memory_format), labels.to(device)
        progress.advance(len(labels))
