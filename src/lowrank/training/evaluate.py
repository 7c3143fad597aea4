"""Accuracy of a network on a split."""

import torch
from torch import nn

from lowrank.networks.registry import NetworkSpec
from lowrank.training.batches import to_input
from lowrank.training.datasets import Dataset, Split

_BATCH_SIZE = 250


@torch.inference_mode()
def top1_percent(network: nn.Module, split: Split, spec: NetworkSpec) -> float:
    """Top-1 accuracy in percent, in float32, on the device that holds the network.

    The network is put into evaluation mode and left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    correct = 0
    for start in range(0, len(split), _BATCH_SIZE):
        rows = split.rows[start : start + _BATCH_SIZE]
        logits = network(to_input(split.images[rows], spec).to(device))
        correct += int((logits.argmax(1).cpu().numpy() == split.labels[rows]).sum())
    network.train(was_training)
    return 100.0 * correct / len(split)


def accuracy_percent(network: nn.Module, data: Dataset, spec: NetworkSpec) -> dict[str, float]:
    """Top-1 accuracy in percent on `validation` (for choices) and `test` (for reports)."""
    return {
        "validation": top1_percent(network, data.validation, spec),
        "test": top1_percent(network, data.test, spec),
    }
