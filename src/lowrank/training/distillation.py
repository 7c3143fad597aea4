"""Learning from the original network's outputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.params import Distillation


class Teacher:
    """The original network, which the compressed one is to answer like.

    Parameters
    ----------
    network
        Put into evaluation mode; its weights are never changed. Dropout is off and batch
        normalisation uses its running statistics, whatever the compressed network does.
    settings
        How much its outputs weigh, and at which temperature they are compared.
    """

    def __init__(self, network: nn.Module, settings: Distillation) -> None:
        self.network = network.eval()
        self._settings = settings

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the images as the compressed network sees them."""
        return self.network(images)

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
