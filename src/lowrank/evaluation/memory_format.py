"""Choose the memory format of the inputs for a network."""

from typing import Any

import torch
from torch import nn

from lowrank.core.tensors import mapped
from lowrank.zoo.forward import evaluation_mode, image_of_zeros
from lowrank.zoo.registry import NetworkSpec


def memory_format_of(network: nn.Module, spec: NetworkSpec) -> torch.memory_format:
    """Return channels-last, or contiguous if the network does not support channels-last.

    Channels-last is faster (`benchmarks/training_speed.py`). A `forward()` that flattens a map with
    `view` needs the contiguous format. One forward pass on a single image detects this. Inputs that
    are no images are always contiguous.
    """
    if spec.forms:
        return torch.contiguous_format
    image = image_of_zeros(network, spec.input_shape).to(memory_format=torch.channels_last)
    with evaluation_mode(network), torch.inference_mode():
        try:
            network(image)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            return torch.contiguous_format
    return torch.channels_last


def moved(inputs: Any, device: torch.device, memory_format: torch.memory_format) -> Any:
    """Return inputs (N, ...), a tensor or several by name, on a device and in a memory format."""
    return mapped(
        lambda tensor: tensor.to(device, non_blocking=True).contiguous(memory_format=memory_format),
        inputs,
    )
