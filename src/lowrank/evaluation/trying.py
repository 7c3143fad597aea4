"""Measure a network before and after decomposition, on a sample of images."""

import torch
from torch import nn

from lowrank.core.plans import Expected
from lowrank.data.datasets import Split
from lowrank.evaluation.network import measure
from lowrank.tasks.task import Measured, Task
from lowrank.zoo.registry import NetworkSpec

# Number of validation images. Measuring VGG-16 on them takes seconds.
IMAGES = 1000


class Trying:
    """Measurement of networks on the same sample of validation images."""

    def __init__(self, task: Task, validation: Split, spec: NetworkSpec) -> None:
        self._task, self._images, self._spec = task, validation.sample(IMAGES), spec

    def measure(self, network: nn.Module) -> Measured:
        """Return the metrics of a network."""
        return measure(self._task, network, self._images, self._spec)

    def expected(self, before: Measured, after: Measured) -> Expected:
        """Compare two networks with each other and with a useless network."""
        images, key = self._images, self._task.metric.key
        labels = torch.from_numpy(images.labels[images.rows])
        return Expected(
            len(images),
            before.values[key],
            after.values[key],
            self._task.useless_value(labels),
            metric=self._task.metric,
            standard_error=self._standard_error(before, after),
        )

    def _standard_error(self, before: Measured, after: Measured) -> float | None:
        """Return the standard error of the difference; None for the bound of a percentage."""
        if self._task.metric.unit == "%" or before.scores is None or after.scores is None:
            return None
        return self._task.metric.drop(before.scores, after.scores)[1]
