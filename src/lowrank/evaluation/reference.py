"""The outputs of the original network as labels, for tasks that compare with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank.config.network_source import NetworkSource
from lowrank.data.datasets import Dataset
from lowrank.errors import UserError
from lowrank.surgery.states import read_state
from lowrank.tasks.outputs import by_name, mapped, outputs_from
from lowrank.zoo.forward import evaluation_mode

if TYPE_CHECKING:
    from lowrank.tasks.outputs import Outputs
    from lowrank.tasks.task import Task

# Memory limit for outputs that are kept, so that the same images are not computed again.
_KEPT_BYTES = 1_000_000_000


class Reference:
    """Function from a batch of inputs to the outputs of the original network.

    Outputs are kept up to a limit of memory, because several networks are measured on the same
    images.

    Parameters
    ----------
    original
        The original network.
    """

    def __init__(self, original: nn.Module) -> None:
        self._network = original
        self._kept: dict[bytes, Outputs] = {}
        self._free = _KEPT_BYTES

    def __call__(self, inputs: Tensor | dict[str, Tensor]) -> Outputs:
        """Return the outputs for inputs (N, ...), on their device, in evaluation mode."""
        digest, tensors = hashlib.blake2b(digest_size=16), by_name(inputs)
        for tensor in tensors.values():
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        key, device = digest.digest(), next(iter(tensors.values())).device
        if key not in self._kept:
            self._network.to(device)
            with torch.inference_mode(), evaluation_mode(self._network):
                outputs = outputs_from(self._network(inputs))
            size = sum(tensor.nbytes for tensor in by_name(outputs).values())
            if size > self._free:
                return outputs
            self._free -= size
            self._kept[key] = outputs
        return mapped(lambda tensor: tensor.to(device), self._kept[key])


def with_reference(
    data: Dataset, task: Task, original: Path | None, source: NetworkSource
) -> Dataset:
    """Return the dataset with the outputs of the original network as labels, if the task needs it.

    Parameters
    ----------
    data
        The dataset.
    task
        Task of the network.
    original
        State file of the original network; needed if the task compares with it.
    source
        How the network is built.

    Raises
    ------
    UserError
        If the file is needed and missing, or cannot be read.
    """
    if not task.compares_with_original:
        return data
    if original is None:
        raise UserError(
            f"the task '{task.name}' compares with the original network: it needs --original."
        )
    return data.with_reference(Reference(read_state(original, source).network))


def compared_with_itself(data: Dataset, task: Task, network: Any) -> Dataset:
    """Return the dataset with the outputs of this network as labels, if the task needs it."""
    return data.with_reference(Reference(network)) if task.compares_with_original else data
