"""Accuracy and loss of a network on a split."""

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

# Among so few classes, the right one is nearly always one of the best five.
_CLASSES_WITHOUT_TOP5 = 10


class Hits:
    """Counts the images whose class is the best guess, and one of the best five."""

    def __init__(self) -> None:
        self._images, self._hits = 0, {}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, classes), labels (N,)."""
        found = {"top1": logits.argmax(1, keepdim=True)}
        if logits.shape[1] > _CLASSES_WITHOUT_TOP5:
            found["top5"] = logits.topk(5).indices
        self._images += len(labels)
        for name, classes in found.items():
            hits = int((classes == labels[:, None]).sum())
            self._hits[name] = self._hits.get(name, 0) + hits

    def percent(self) -> dict[str, float]:
        """`top1` and, where there are over ten classes, `top5`, in percent of the images."""
        return {name: 100.0 * hits / self._images for name, hits in self._hits.items()}


def topk_percent(network: nn.Module, split: Split, spec: NetworkSpec) -> dict[str, float]:
    """Accuracy in percent, in float32, on the device that holds the network.

    The network is put into evaluation mode and left in the mode it was in. Batches are small
    enough that memory is bounded, whatever the number and size of the images.

    Returns
    -------
    dict
        `top1` and, where the split has over ten classes, `top5`.
    """
    split.require_labels("measuring accuracy")
    hits = Hits()
    for logits, labels in outputs_of(network, split, spec):
        hits.add(split.of_classes(logits), labels)
    return hits.percent()


def top1_percent(network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Top-1 accuracy in percent; see `topk_percent`."""
    return topk_percent(network, split, spec)["top1"]


@torch.inference_mode()
def mean_loss(network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Mean cross-entropy of the images of a split, measured as `topk_percent` measures."""
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
    """Accuracy in percent on `validation` (for choices) and `test` (for reports).

    Returns
    -------
    dict
        Top-1 by the name of the split; where the dataset has over ten classes also top-5, as
        `validation_top5` and `test_top5`.

    Raises
    ------
    UserError
        When the network cannot be measured on the dataset: see `require_match`.
    """
    require_match(data, spec)
    found = {name: topk_percent(network, getattr(data, name), spec) for name in splits}
    return {name: each["top1"] for name, each in found.items()} | {
        f"{name}_top5": each["top5"] for name, each in found.items() if "top5" in each
    }


@torch.inference_mode()
def outputs_of(
    network: nn.Module, split: Split, spec: NetworkSpec, *, mirrored: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (N, outputs) and labels (N,) of each batch, on the network's device.

    In evaluation mode, and in the precision of the autocast that it is used under. With `mirrored`,
    images are flipped from left to right.
    """
    with evaluation_mode(network):
        for inputs, labels in inputs_of(network, split, spec):
            yield network(inputs.flip(3) if mirrored else inputs), labels


def inputs_of(network: nn.Module, split: Split, spec: NetworkSpec) -> Iterator[Batch]:
    """Images (N, C, H, W) and labels (N,) of each batch, as and where the network takes them.

    Reports progress: a batch counts as done when the next one is asked for.
    """
    device, memory_format = next(network.parameters()).device, memory_format_of(network, spec)
    batches, progress = EvaluationBatches(split, spec), Progress(len(split))
    for images, labels in in_background(
        batches.__getitem__, range(len(batches)), torch.get_num_threads()
    ):
        yield images.to(device, memory_format=memory_format), labels.to(device)
        progress.advance(len(labels))
