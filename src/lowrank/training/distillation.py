"""Distillation: train the compressed network on the outputs of the original network."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lowrank.config.finetune import Distillation
from lowrank.core.stored import read_tensors, write_tensors
from lowrank.data.datasets import Split
from lowrank.data.images import InputArray
from lowrank.errors import UserError
from lowrank.evaluation.network import outputs_of
from lowrank.tasks.outputs import by_name, mapped, outputs_from
from lowrank.tasks.task import Task
from lowrank.training.maps import Maps, WatchedMaps
from lowrank.zoo.registry import NetworkSpec

_LOGITS = "logits"

# Largest finite value of float16, in which feature maps are stored.
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Answers:
    """Outputs and feature maps of the original network for some images.

    Attributes
    ----------
    logits
        Outputs (N, ...), or several outputs by name.
    maps
        Feature maps (N, C, H, W) by layer name; each map is the input of that layer.
    """

    logits: Any
    maps: Maps = field(default_factory=dict)


class Teacher(ABC):
    """Original network whose outputs and feature maps the compressed network is trained on.

    Parameters
    ----------
    settings
        Share of the outputs in the loss, temperature, and weight of the feature maps.
    layers
        Layers of both networks whose inputs are compared as feature maps; see
        `lowrank.training.maps`.
    """

    def __init__(self, settings: Distillation, layers: Sequence[str] = ()) -> None:
        self._settings = settings
        self.layers = tuple(layers) if settings.maps else ()

    @property
    def needs_labels(self) -> bool:
        """Whether the loss depends on labels, in addition to the outputs of the teacher."""
        return self._settings.weight < 1.0

    @abstractmethod
    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move the teacher to the device of the images and set their memory format."""

    @abstractmethod
    def answers(self, images: Any, rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> Answers:
        """Return the logits and feature maps for a batch.

        Parameters
        ----------
        images
            Input of the compressed network, (N, C, H, W), or other inputs.
        rows
            Positions of these images in the training split, (N,).
        flipped
            Whether each image is flipped, (N,).
        """

    def combined_loss(
        self, task: Task, loss: Tensor, outputs: Any, maps: Maps, answers: Answers
    ) -> Tensor:
        """Combine the loss for labels with the losses for the teacher's outputs and feature maps.

        The loss for outputs is that of the task (`Task.imitation_loss`). The loss for a feature map
        is the squared error divided by the squared norm of the teacher's map (Romero et al. 2015,
        equation 3, made relative).

        Parameters
        ----------
        task
            Task of the network.
        loss
            Loss for labels, a scalar.
        outputs
            Outputs of the compressed network, (N, ...), in float32.
        maps
            Feature maps of the compressed network, by layer.
        answers
            Outputs and feature maps of the teacher.
        """
        weight = self._settings.weight
        teacher_loss = task.imitation_loss(
            outputs,
            mapped(torch.Tensor.float, answers.logits),
            temperature=self._settings.temperature,
        )
        for layer in self.layers:
            expected = answers.maps[layer].float()
            error = functional.mse_loss(maps[layer].float(), expected)
            # The lower bound keeps the loss finite if the teacher's map is all zeros.
            teacher_loss = teacher_loss + (
                self._settings.maps * error / expected.square().mean().clamp(min=1e-12)
            )
        return (1.0 - weight) * loss + weight * teacher_loss


class AugmentedTeacher(Teacher):
    """Teacher that runs the original network on each augmented batch.

    This costs one more forward pass per step. The network is in evaluation mode, so dropout is off
    and batch normalization uses running statistics. Its weights are never changed.
    """

    def __init__(
        self, network: nn.Module, settings: Distillation, layers: Sequence[str] = ()
    ) -> None:
        super().__init__(settings, layers)
        self.network = network.eval()
        self._watched = WatchedMaps(self.network, self.layers)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        # The types of PyTorch lack this combination of arguments.
        self.network.to(device, memory_format=memory_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def answers(self, images: Any, rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> Answers:
        return Answers(outputs_from(self.network(images)), self._watched.take())


class PlainTeacher(Teacher):
    """Teacher that uses stored logits and feature maps for plain images and flipped images.

    A slightly shifted image has nearly the same logits as the plain image. Its feature maps differ
    more, so they are only valid for plain or flipped images.

    Parameters
    ----------
    stored
        Outputs for all images of the training split, in its order, optionally followed by the
        outputs for all flipped images.
    settings
        Share of the outputs in the loss, temperature, and weight of the feature maps.
    images
        Number of images of the training split.
    """

    def __init__(self, stored: Answers, settings: Distillation, images: int) -> None:
        super().__init__(settings, tuple(stored.maps))
        self._stored = stored
        self._first_flipped = images if len(stored.logits) == 2 * images else 0

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        # Maps of all images may not fit on a GPU, so the maps of each batch are moved there.
        self._stored = Answers(self._stored.logits.to(device), self._stored.maps)

    def answers(self, images: Any, rows: NDArray[np.int64], flipped: NDArray[np.bool_]) -> Answers:
        indices = torch.from_numpy(rows + self._first_flipped * flipped)
        logits = self._stored.logits
        device = next(iter(by_name(images).values())).device
        return Answers(
            logits[indices.to(logits.device)],
            {layer: self._stored.maps[layer][indices].to(device) for layer in self.layers},
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
    """Write the logits and feature maps of a network for all images of a split, in its order.

    Logits (images, outputs) are stored in float32, and the inputs of `layers` (see `WatchedMaps`)
    in float16. With `mirrored`, the outputs for the flipped images follow, in the same order. For a
    network with several outputs, the file is empty.

    Raises
    ------
    UserError
        If a feature map has values outside the range of float16, or if other inputs than images are
        to be mirrored. Nothing is written then.
    """
    if mirrored and isinstance(split.images, InputArray):
        raise UserError(
            "teacher_outputs.mirrored: the dataset has arrays, which are used as they are; only "
            "images can be mirrored. Set it to false."
        )
    stored: dict[str, list[NDArray]] = {name: [] for name in (_LOGITS, *layers)}
    with WatchedMaps(network, layers) as watched:
        for flip in (False, True) if mirrored else (False,):
            for logits, _ in outputs_of(network, split, spec, mirrored=flip):
                if not isinstance(logits, Tensor):
                    # DVC runs this step for every network, also if no training reads the file.
                    write_tensors(path, {})
                    return
                stored[_LOGITS].append(logits.float().cpu().numpy())
                for layer, feature_map in watched.take().items():
                    stored[layer].append(_in_float16(feature_map, layer, path))
    write_tensors(path, {name: np.concatenate(parts) for name, parts in stored.items()})


def _in_float16(feature_map: Tensor, layer: str, path: str | os.PathLike) -> NDArray[np.float16]:
    """Convert a feature map to float16. Raises UserError for values that would be infinite."""
    values = feature_map.float().cpu().numpy()
    largest = float(np.abs(values).max())
    if largest > _FLOAT16_MAX:
        raise UserError(
            f"{path}: the feature map at the input of layer '{layer}' has absolute values up to "
            f"{largest:,.0f}, but feature maps are stored in float16, whose largest value is "
            f"{_FLOAT16_MAX:,.0f}. Nothing was written. In params.yaml, set `teacher_outputs.maps: "
            "0` to store no feature maps, with `distill.maps: 0` (train without feature maps) or "
            "`distill.images: augmented` (compute them in each step)."
        )
    return values.astype(np.float16)


def read_outputs(path: str | os.PathLike, split: Split) -> Answers:
    """Read the file that `write_outputs` wrote.

    Raises
    ------
    UserError
        If the file does not hold the outputs for the images of this split.
    """
    stored = read_tensors(Path(path), framework="pt")
    if not stored:
        raise UserError(
            f"{path}: holds nothing, because the network has several outputs and only a single "
            "output is stored. Set `distill.images: augmented`, which computes them in each step."
        )
    logits = stored.pop(_LOGITS, None)
    if logits is None or len(logits) not in (len(split), 2 * len(split)):
        content = "no logits" if logits is None else f"logits of {len(logits)} images"
        raise UserError(
            f"{path}: holds {content}, expected logits of {len(split)} training images, or of "
            f"{2 * len(split)} with flipped images. Delete the file and run the same command again."
        )
    return Answers(logits, stored)
