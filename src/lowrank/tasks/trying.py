"""The accuracy of a network before and after its layers are decomposed, on some images."""

import numpy as np
from torch import nn

from lowrank.core.plans import Expected
from lowrank.data.datasets import Split
from lowrank.tasks.classification import top1_percent
from lowrank.zoo.registry import NetworkSpec

# Validation images on which ranks are tried: seconds for VGG-16.
IMAGES = 1000


class Trying:
    """Measures a network on the same validation images again and again."""

    def __init__(self, validation: Split, spec: NetworkSpec) -> None:
        self._images, self._spec = validation.sample(IMAGES), spec

    def accuracy(self, network: nn.Module) -> float:
        """Top-1 accuracy in percent."""
        return top1_percent(network, self._images, self._spec)

    def expected(self, before: float, after: float) -> Expected:
        """Both accuracies, beside what always answering the most frequent class would reach."""
        most_frequent = np.bincount(self._images.labels[self._images.rows]).max()
        chance = 100.0 * float(most_frequent) / len(self._images)
        return Expected(len(self._images), before, after, chance)
