"""Measure the accuracy of a network before and after decomposition on a sample of images."""

import numpy as np
from torch import nn

from lowrank.core.plans import Expected
from lowrank.data.datasets import Split
from lowrank.tasks.classification import top1_percent
from lowrank.zoo.registry import NetworkSpec

# Number of validation images. Measuring VGG-16 on them takes seconds.
IMAGES = 1000


class Trying:
    """Measurement of networks on the same sample of validation images."""

    def __init__(self, validation: Split, spec: NetworkSpec) -> None:
        self._images, self._spec = validation.sample(IMAGES), spec

    def accuracy(self, network: nn.Module) -> float:
        """Return the top-1 accuracy in percent."""
        return top1_percent(network, self._images, self._spec)

    def expected(self, before: float, after: float) -> Expected:
        """Return both accuracies, and the accuracy of always predicting the most frequent class."""
        most_frequent = np.bincount(self._images.labels[self._images.rows]).max()
        chance = 100.0 * float(most_frequent) / len(self._images)
        return Expected(len(self._images), before, after, chance)
