"""The order in memory that a network's images are given in."""

import torch
from torch import nn

from lowrank.zoo.forward import evaluation_mode, image_of_zeros
from lowrank.zoo.registry import NetworkSpec


def memory_format_of(network: nn.Module, spec: NetworkSpec) -> torch.memory_format:
    """Channels last, which is faster (`benchmarks/training_speed.py`), where the network takes it.

    A `forward()` that flattens a map by `view` needs PyTorch's own order; one image tells.
    """
    image = image_of_zeros(network, spec.input_shape).to(memory_format=torch.channels_last)
    with evaluation_mode(network), torch.inference_mode():
        try:
            network(image)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            return torch.contiguous_format
    return torch.channels_last
