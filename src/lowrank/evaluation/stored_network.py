"""The network before a round, read from stored files, with measurements on images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.core.plans import Expected, Factored
from lowrank.errors import UserError
from lowrank.factorize import Moments
from lowrank.surgery.stored_factors import layer_bias, layer_factored, layer_weight
from lowrank.surgery.stored_moments import layer_moments
from lowrank.tasks import get_task
from lowrank.tasks.outputs import outputs_from

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lowrank.config.network_source import NetworkSource
    from lowrank.data.datasets import Split
    from lowrank.ranks.choice import Replacements, Say
    from lowrank.surgery.divergence import Divergence
    from lowrank.surgery.states import State
    from lowrank.tasks.task import Measured, Task


@dataclass(frozen=True)
class MeasuringImages:
    """Validation images for the measurement of a network, and its task.

    Parameters
    ----------
    source
        Description of how to build the network.
    dataset, splits
        Folders that the steps with these names wrote.
    count
        Number of images for measuring losses.
    threads
        Number of CPU threads of PyTorch.
    task
        Name of the task.
    original
        State file of the original network, for a task that compares with it.
    pick_device
        Returns the processor of the measurements, when they begin. By default it is the CPU.
    """

    source: NetworkSource
    dataset: Path
    splits: Path | None
    count: int
    threads: int
    task: str
    original: Path | None = None
    pick_device: Callable[[], torch.device] | None = None


class StoredNetwork:
    """`MeasuredNetwork` that is read from files. PyTorch is only imported for measurements.

    Parameters
    ----------
    state
        State file of the network (safetensors).
    moments
        File with input moments of its layers, or None if factors approximate the weights.
    images
        Images for measurements, or None without measurements.
    say
        Called with lines of progress.
    """

    def __init__(
        self, state: Path, moments: Path | None, images: MeasuringImages | None, say: Say
    ) -> None:
        self._path, self._moments, self._measuring, self._say = state, moments, images, say
        self._before: Measured | None = None

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the kernel of a layer, reconstructed if it is factored, and the bias."""
        return layer_weight(self._path, name), layer_bias(self._path, name)

    def factored(self, name: str) -> Factored | None:
        """Return what a layer was replaced by, or None for a dense layer."""
        return layer_factored(self._path, name)

    def moments(self, name: str) -> Moments | None:
        """Return the input moments of a layer, or None without a file of moments."""
        return layer_moments(self._moments, name) if self._moments else None

    def losses(self, replacements: Replacements) -> dict[str, float]:
        """Measure the loss with a single layer replaced, for each layer."""
        from lowrank.evaluation.layer_losses import losses_by_layer

        state, validation = self._measured
        sample = validation.sample(self._images.count)
        return losses_by_layer(
            self._task, state.network, state.spec, sample, replacements, say=self._say
        )

    def divergence(self) -> Divergence:
        """Return a function that measures how much replaced layers change the outputs."""
        from lowrank.core.progress import counted
        from lowrank.evaluation.network import inputs_of
        from lowrank.surgery.divergence import Divergence

        state, validation = self._measured
        network, split = state.network, validation.sample(self._images.count)

        def images() -> Iterator[Any]:
            inputs = inputs_of(network, split, state.spec)
            return counted((batch for batch, _ in inputs), len(split))

        def difference(outputs: Any, expected: Any) -> Tensor:
            pair = (split.of_classes(outputs_from(value)) for value in (outputs, expected))
            return self._task.divergence(*pair)

        return Divergence(network, images, difference)

    @property
    def divergence_unit(self) -> str:
        """Unit of the divergence."""
        return self._task.divergence_unit

    def expected(self, replacements: Replacements) -> Expected | None:
        """Measure the metric before and after all these layers are replaced."""
        from lowrank.evaluation.trying import Trying
        from lowrank.surgery.prediction import with_factors

        if self._measuring is None:
            return None
        state, validation = self._measured
        trying = Trying(self._task, validation, state.spec)
        if self._before is None:
            self._before = trying.measure(state.network)
        after = with_factors(state.network, replacements, lambda: trying.measure(state.network))
        return trying.expected(self._before, after)

    @property
    def _task(self) -> Task:
        return get_task(self._images.task)

    @property
    def _images(self) -> MeasuringImages:
        if self._measuring is None:
            raise UserError("this rank rule measures losses on images. Pass --dataset.")
        return self._measuring

    @functools.cached_property
    def _measured(self) -> tuple[State, Split]:
        """Network in PyTorch, and its validation images."""
        import torch

        from lowrank.data.datasets import open_dataset
        from lowrank.evaluation.reference import with_reference
        from lowrank.surgery.states import read_state

        images = self._images
        torch.set_num_threads(images.threads)
        state = read_state(self._path, images.source)
        data = open_dataset(images.dataset, images.splits)
        data = with_reference(data, self._task, images.original, images.source)
        if images.pick_device:
            state.network.to(images.pick_device())
        return state, data.validation
