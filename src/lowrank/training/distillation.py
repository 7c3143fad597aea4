"""Learning from the original network's outputs."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import UserError
from lowrank.networks.registry import NetworkSpec
from lowrank.params import Distillation
from lowrank.stored import read_tensor, write_tensors
from lowrank.training.datasets import Split
from lowrank.training.evaluate import outputs_of


class Teacher(ABC):
    """The original network, which the compressed one is to answer like.

    Parameters
    ----------
    settings
        How much its outputs weigh, and at which temperature they are compared.
    """

    def __init__(self, settings: Distillation) -> None:
        self._settings = settings

    @property
    def needs_labels(self) -> bool:
        """Whether labels have a share of the loss beside the teacher's outputs."""
        return self._settings.weight < 1.0

    @abstractmethod
    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Go where the images are, and take them in this order."""

    @abstractmethod
    def outputs(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Logits (N, outputs) for a batch (N, C, H, W) as the compressed network sees it.

        `rows` says which images of the training split these are.
        """

    def mixed(self, loss: Tensor, logits: Tensor, outputs: Tensor) -> Tensor:
        """The loss by labels and that by the teacher's outputs, each with its share.

        The latter is the Kullback-Leibler divergence of the softmax at temperature T, times T^2,
        so that its gradient keeps its size whatever T is (Hinton et al. 2015, section 2).
        """
        temperature, weight = self._settings.temperature, self._settings.weight
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, 1),
            functional.log_softmax(outputs / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1.0 - weight) * loss + weight * temperature**2 * divergence


class AugmentedTeacher(Teacher):
    """Answers for each batch anew, which costs the network's forward pass in each step.

    The network is put into evaluation mode and its weights are never changed. Dropout is off and
    batch normalisation uses its running statistics, whatever the compressed network does.
    """

    def __init__(self, network: nn.Module, settings: Distillation) -> None:
        super().__init__(settings)
        self.network = network.eval()

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self.network.to(device, memory_format=memory_format)

    @torch.no_grad()
    def outputs(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return self.network(images)


class PlainTeacher(Teacher):
    """Answers for the images as they are, known beforehand (images of the split, outputs).

    A mirrored or slightly moved image has nearly the answer of the plain one.
    """

    def __init__(self, logits: Tensor, settings: Distillation) -> None:
        super().__init__(settings)
        self._logits = logits

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self._logits = self._logits.to(device)

    def outputs(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return self._logits[torch.from_numpy(rows).to(self._logits.device)]


def write_outputs(
    path: str | os.PathLike, network: nn.Module, split: Split, spec: NetworkSpec
) -> None:
    """Store a network's logits for every image of a split, (images, outputs) in float32."""
    logits = torch.cat([each.float().cpu() for each, _ in outputs_of(network, split, spec)])
    write_tensors(path, {"logits": logits.numpy()})


def read_outputs(path: str | os.PathLike, split: Split) -> Tensor:
    """Logits (images, outputs) that `write_outputs` stored.

    Raises UserError where they are not those of this split's images.
    """
    logits = read_tensor(Path(path), "logits")
    if logits is None or len(logits) != len(split):
        found = "no logits" if logits is None else f"logits of {len(logits)} images"
        raise UserError(
            f"{path}: holds {found}, where those of {len(split)} training images were expected. "
            "Delete it and run the same command again."
        )
    return torch.from_numpy(logits)
