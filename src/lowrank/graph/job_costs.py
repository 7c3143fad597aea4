"""Estimate the memory and the time of jobs from a layer table and the settings of a step.

The estimates are upper limits for a cluster, which ends a job that exceeds them: docs/cluster.md
compares them with measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowrank.config.training import TrainingSettings
from lowrank.core.layers import LayerTable

_MB = 1e6
_BYTES_PER_NUMBER = 4

# Multiply-accumulates per second and thread. Old processors without AVX-512 reach several times as
# many with large layers in float32, and few networks reach less.
_MACS_PER_SECOND = 5e9

# Memory of a process that has loaded PyTorch, ONNX Runtime and a dataset, in MB.
_PROCESS_MB = 1000

# A forward and a backward pass, in forward passes.
_PASSES_OF_STEP = 3.5

# Images of all splits that a step evaluates, and training images of an epoch. The graph is made
# before the dataset exists, so these are those of a usual dataset.
_EVALUATED_IMAGES = 20_000
_IMAGES_OF_EPOCH = 50_000

# Largest batch for evaluation: see lowrank.data.batches.
_EVALUATED_BATCH, _EVALUATED_PIXELS = 250, 2_000_000

# Share that is added to each estimate of memory.
_MARGIN = 1.5


@dataclass(frozen=True)
class JobCosts:
    """Memory in MB and time in minutes of jobs with a network.

    Attributes
    ----------
    weights_mb : float
        Size of all weights in float32.
    largest_mb : float
        Size of the weights of the largest layer.
    maps_mb : float
        Size of the outputs of all layers for one image.
    macs : int
        Multiply-accumulates for one image.
    batch : int
        Images of a batch for evaluation.
    """

    weights_mb: float
    largest_mb: float
    maps_mb: float
    macs: int
    batch: int

    @classmethod
    def of(cls, table: LayerTable) -> JobCosts:
        """Return the costs of jobs with the network of a layer table."""
        weights = [layer.parameters * _BYTES_PER_NUMBER / _MB for layer in table.layers]
        outputs = sum(layer.out_channels * layer.positions for layer in table.layers)
        pixels = math.prod(table.input_shape[1:]) or 1
        return cls(
            weights_mb=sum(weights),
            largest_mb=max(weights, default=0.0),
            maps_mb=outputs * _BYTES_PER_NUMBER / _MB,
            macs=sum(layer.dense_macs for layer in table.layers),
            batch=min(_EVALUATED_BATCH, max(1, _EVALUATED_PIXELS // pixels)),
        )

    @property
    def evaluating_mb(self) -> int:
        """Memory of a job that runs the network and keeps copies of its weights."""
        return _with_margin(8 * self.weights_mb + self.batch * self.maps_mb)

    @property
    def analyzing_mb(self) -> int:
        """Memory of a job with the moments of all layers, or with measured losses of all layers."""
        return _with_margin(24 * self.weights_mb + 2 * self.batch * self.maps_mb)

    @property
    def decomposing_mb(self) -> int:
        """Memory of a job that decomposes one layer. It does not load ONNX Runtime or images."""
        return _with_margin(20 * self.largest_mb)

    @property
    def measuring_mb(self) -> int:
        """Memory of a job that measures latencies."""
        return _with_margin(8 * self.weights_mb)

    def training_mb(self, settings: TrainingSettings) -> int:
        """Return the memory of training: weights, gradients, momentum, a state, and maps.

        Each of several processes has its own copy of all but the maps. With `auto`, they are as
        many as the GPUs, and use mostly their memory.
        """
        processes = 1 if settings.processes == "auto" else settings.processes
        maps = 4 * settings.batch_size * self.maps_mb
        own = processes * 10 * self.weights_mb + (processes - 1) * _PROCESS_MB
        return _with_margin(own + maps)

    def evaluating_minutes(self, threads: int) -> int:
        """Return the time of a job that runs the network on all splits."""
        return 15 + self.passing_minutes(_EVALUATED_IMAGES, threads)

    def analyzing_minutes(self, threads: int) -> int:
        """Return the time of a job that measures all layers on a part of the images."""
        return 60 + 2 * self.passing_minutes(_EVALUATED_IMAGES, threads)

    def training_minutes(self, settings: TrainingSettings) -> int:
        """Return the time of training, with the evaluation before and after it."""
        images = settings.batch_size * (settings.steps or 0)
        if settings.steps is None:
            images = round((settings.epochs or 0) * _IMAGES_OF_EPOCH)
        trained = self.passing_minutes(round(_PASSES_OF_STEP * images), settings.threads)
        return trained + 2 * self.evaluating_minutes(settings.threads)

    def passing_minutes(self, passes: int, threads: int) -> int:
        """Return the time of forward passes with single images."""
        return math.ceil(passes * self.macs / (threads * _MACS_PER_SECOND) / 60)


def _with_margin(megabytes: float) -> int:
    """Return the memory of a process with this much beside its libraries, in whole 100 MB."""
    return 100 * math.ceil(_MARGIN * (_PROCESS_MB + megabytes) / 100)
