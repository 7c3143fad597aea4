"""A network of a few layers, some of them sequences of factors, for tests of exports."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from lowrank.zoo import NetworkSpec

SPEC = NetworkSpec(name="small", input_shape=(3, 8, 8), num_classes=5)


def with_used_statistics(network: nn.Module) -> nn.Module:
    """Give batch normalizations random statistics, as new ones are the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


def small_network(seed: int = 0) -> nn.Module:
    """Build a network with layers replaced by two and three convolutions, then normalized."""
    torch.manual_seed(seed)
    replaced_by_three = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False),
        nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 8, 1, bias=False),
    )
    replaced_by_two = nn.Sequential(
        nn.Conv2d(8, 4, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
        nn.Conv2d(4, 8, (1, 3), stride=(1, 2), padding=(0, 1)),
    )
    network = nn.Sequential(
        replaced_by_three,
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        replaced_by_two,
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    return with_used_statistics(network)


def logits_of(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]
