"""Learning from the original network's outputs."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lowrank.config.finetune import Distillation
from lowrank.core.stored import read_tensors, write_tensors
from lowrank.data.datasets import Split
from lowrank.errors import UserError
from lowrank.tasks.classification import outputs_of
from lowrank.training.maps import Maps, WatchedMaps
from lowrank.zoo.registry import NetworkSpec

_LOGITS = "logits"


@dataclass(frozen=True)
class Answers:
    """What the original network computes for some images.

    Attributes
    ----------
    logits
        (N, outputs).
    maps
        Feature maps (N, C, H, W) by the layer whose input they are.
    """

    logits: Tensor
    maps: Maps = field(default_factory=dict)


class Teacher(ABC):
    """The original network, from whose outputs and feature maps the compressed one learns.

    Parameters
    ----------
    settings
        The share of the outputs in the loss, their temperature, and the weight of the maps.
    layers
        Layers of both networks whose inputs are the feature maps that are compared; see
        `lowrank.training.maps`.
    """

    def __init__(self, settings: Distillation, layers: Sequence[str] = ()) -> None:
        self._settings = settings
        self.layers = tuple(layers) if settings.maps else ()

    @property
    def needs_labels(self) -> bool:
        """Whether labels have a share of the loss beside the teacher's outputs."""
        return self._settings.weight < 1.0

    @abstractmethod
    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move to the images' device, and accept images in this memory format."""

    @abstractmethod
    def answers(
        self, images: Tensor, rows: NDArray[np.int64], flipped: NDArray[np.bool_]
    ) -> Answers:
        """Return logits and maps for a batch.

        Parameters
        ----------
        images
            (N, C, H, W), as the compressed network sees them.
        rows
            (N,), positions of these images in the training split.
        flipped
            (N,), whether an image is mirrored.
        """

    def mixed(self, loss: Tensor, logits: Tensor, maps: Maps, answers: Answers) -> Tensor:
        """Combine the loss by labels with the losses by the teacher's logits and maps.

        The loss by logits is the Kullback-Leibler divergence of the softmax at temperature T,
        times T^2, so that its gradient does not depend on the size of T (Hinton et al. 2015,
        section 2). The loss by a map is its squared error over the squared norm of the teacher's
        map (Romero et al. 2015, equation 3, made relative).

        Parameters
        ----------
        loss
            By labels, a scalar.
        logits
            Of the compressed network, (N, classes), in float32.
        maps
            Of the compressed network, by layer.
        """
        temperature, weight = self._settings.temperature, self._settings.weight
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, 1),
            functional.log_softmax(answers.logits.float() / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        by_teacher = temperature**2 * divergence
        for layer in self.layers:
            right = answers.maps[layer].float()
            error = functional.mse_loss(maps[layer].float(), right)
            # The bound keeps the loss finite where the teacher's map is all zeros.
            by_teacher = by_teacher + (
                self._settings.maps * error / right.square().mean().clamp(min=1e-12)
            )
        return (1.0 - weight) * loss + weight * by_teacher


class AugmentedTeacher(Teacher):
    """The original network, run on each augmented batch: one more forward pass in each step.

    The network is put into evaluation mode and its weights are never changed. Dropout is off and
    batch normalization uses its running statistics, whatever the compressed network does.
    """

    def __init__(
        self, network: nn.Module, settings: Distillation, layers: Sequence[str] = ()
    ) -> None:
        super().__init__(settings, layers)
        self.network = network.eval()
        self._watched = WatchedMaps(self.network, self.layers)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self.network.to(device, memory_format=memory_format)

    @torch.no_grad()
    def answers(
        self, images: Tensor, rows: NDArray[np.int64], flipped: NDArray[np.bool_]
    ) -> Answers:
        return Answers(self.network(images), self._watched.take())


class PlainTeacher(Teacher):
    """Stored logits and maps of the original network, for the images as they are and mirrored.

    A slightly moved image has nearly the logits of the plain one. Its feature maps differ more:
    they are for images that are at most mirrored.

    Parameters
    ----------
    stored
        For every image of the training split, in its order; then, or not, for every one mirrored.
    images
        Size of the training split.
    """

    def __init__(self, stored: Answers, settings: Distillation, images: int) -> None:
        super().__init__(settings, tuple(stored.maps))
        self._stored = stored
        self._mirrored_from = images if len(stored.logits) == 2 * images else 0

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        # Maps of all images need not fit a GPU: each batch takes its own there.
        self._stored = Answers(self._stored.logits.to(device), self._stored.maps)

    def answers(
        self, images: Tensor, rows: NDArray[np.int64], flipped: NDArray[np.bool_]
    ) -> Answers:
        places = torch.from_numpy(rows + self._mirrored_from * flipped)
        logits = self._stored.logits
        return Answers(
            logits[places.to(logits.device)],
            {layer: self._stored.maps[layer][places].to(images.device) for layer in self.layers},
        )


def write_outputs(
    path: str | os.PathLike,
    network: nn.Module,
    split: Split,
    spec: NetworkSpec,
    *,
    layers: Sequence[str] = (),
    mirrored: bool = False,
) -> None:
    """Store a network's logits and maps for every image of a split, in the split's order.

    Logits (images, outputs) are stored in float32, the inputs of `layers` (see `WatchedMaps`) in
    float16. With `mirrored`, those of the mirrored images follow, in the same order.
    """
    stored: dict[str, list[NDArray]] = {name: [] for name in (_LOGITS, *layers)}
    with WatchedMaps(network, layers) as watched:
        for flip in (False, True) if mirrored else (False,):
            for logits, _ in outputs_of(network, split, spec, mirrored=flip):
                stored[_LOGITS].append(logits.float().cpu().numpy())
                for layer, map_ in watched.take().items():
                    stored[layer].append(map_.float().cpu().numpy().astype(np.float16))
    write_tensors(path, {name: np.concatenate(parts) for name, parts in stored.items()})


def read_outputs(path: str | os.PathLike, split: Split) -> Answers:
    """Read what `write_outputs` stored.

    Raises
    ------
    UserError
        Where the file does not hold the outputs of this split's images.
    """
    stored = read_tensors(Path(path), framework="pt")
    logits = stored.pop(_LOGITS, None)
    if logits is None or len(logits) not in (len(split), 2 * len(split)):
        found = "no logits" if logits is None else f"logits of {len(logits)} images"
        raise UserError(
            f"{path}: holds {found}, where those of {len(split)} training images, or of these and "
            "the same mirrored, were expected. Delete it and run the same command again."
        )
    return Answers(logits, stored)
