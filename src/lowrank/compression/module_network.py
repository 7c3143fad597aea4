"""A network in PyTorch, while it is compressed in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.loss_samples import divided, held_out
from lowrank.compression.runtime_module import RuntimeModule
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected
from lowrank.errors import UserError
from lowrank.evaluation.comparison import agreement
from lowrank.factorize import Decomposition, Moments, Shift
from lowrank.onnx_files.export import export_onnx
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.equality import IMAGES, layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments
from lowrank.surgery.states import put_factors
from lowrank.surgery.suspended_passes import SuspendedPasses
from lowrank.tasks import get_task
from lowrank.tasks.agreement import Agreement
from lowrank.tasks.outputs import outputs_from
from lowrank.tasks.task import Task
from lowrank.zoo.forward import evaluation_mode, noise_images
from lowrank.zoo.plain import copied, fold, require_eager, unwrapped
from lowrank.zoo.registry import NetworkSpec


@dataclass
class ModuleNetwork:
    """A module, its layers, and images. It has the methods of `onnx_networks.GraphNetwork`.

    Parameters
    ----------
    module
        The network. `replace` changes it.
    table
        Its layers.
    obstacles
        Reasons why layers must stay, by name: exact factors would change the outputs.
    task
        Task by which outputs are compared.
    batches
        Images as the network expects them, (N, C, H, W); empty without images.
    """

    module: nn.Module
    table: LayerTable
    obstacles: dict[str, str]
    task: Task
    batches: Sequence[Tensor] = ()

    @classmethod
    def of(
        cls,
        module: nn.Module,
        input_shape: tuple[int, ...],
        task: Task,
        batches: Sequence[Tensor] = (),
    ) -> ModuleNetwork:
        """Copy a user's module, and find the layers that factors can replace.

        If its outputs are not those of `task`, they are compared by the task `agreement`.

        Raises UserError if the network cannot be copied, or does not accept the images.
        """
        label = type(unwrapped(module)).__name__
        module = unwrapped(module)
        require_eager(module, label)
        module = copied(module)
        fold(module)
        table = find_layers(module, input_shape, label)
        sample = batches[0][:IMAGES] if batches else noise_images(module, input_shape, IMAGES)
        obstacles = layers_that_must_stay(module, table, sample)
        with torch.no_grad(), evaluation_mode(module):
            accepts = task.accepts(outputs_from(module(sample)))
        return cls(module, table, obstacles, task if accepts else get_task(Agreement.name), batches)

    def copy(self) -> ModuleNetwork:
        """Return a network that `replace` can change, with the same images."""
        return replace(self, module=copied(self.module))

    @property
    def samples(self) -> int:
        """Number of images."""
        return sum(map(len, self.batches))

    def with_samples_of(self, other: ModuleNetwork) -> ModuleNetwork:
        """Return this network with the images of another one."""
        return replace(self, batches=other.batches)

    @property
    def divergence_unit(self) -> str:
        """Unit of the divergence."""
        return self.task.divergence_unit

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the weight and the bias of a layer in float32."""
        layer: Any = self.module.get_submodule(name)
        return _array(layer.weight), None if layer.bias is None else _array(layer.bias)

    def replace(self, name: str, factors: Decomposition) -> None:
        """Replace a layer by its factors."""
        before: Any = self.module.get_submodule(name)
        put_factors(self.module, name, factors.sequence, factors.tensors, source=name)
        self.module.get_submodule(name).to(before.weight).train(before.training)

    def remove_unread_channels(self) -> None:
        """Leave the module as it is: channels are removed when it is exported."""

    def moments(self, names: Iterable[str]) -> dict[str, Moments]:
        """Return the moments of the inputs of some layers. Raises UserError without images."""
        return input_moments(self.module, [self.table[name] for name in names], self.batches)

    def drifts(
        self, original: ModuleNetwork, names: Iterable[str]
    ) -> Generator[tuple[str, Moments, Shift]]:
        """Yield layers in the order of their calls, with the moments and the shift of their inputs.

        The caller replaces a layer before it takes the next one.
        """
        layers = [self.table[name] for name in names]
        with SuspendedPasses(original.module, self.module, layers, self.batches) as passes:
            for name in passes.order:
                yield name, *passes.shifted_moments(name)

    def divergence(self) -> Callable[[Iterable[tuple[str, Decomposition]]], Iterable[float]]:
        """Return a function that measures how much each replaced layer changes the outputs."""
        if not self.batches:
            raise UserError(
                "select: 'budget' measures the change of outputs on images, but `images` is None. "
                "Pass a few hundred training images, or use another rule."
            )

        def difference(outputs: Any, expected: Any) -> Tensor:
            return self.task.divergence(outputs_from(outputs), outputs_from(expected))

        return Divergence(self.module, lambda: self.batches, difference)

    def write_fixed(self, path: Path) -> None:
        """Write the network as ONNX."""
        channels, height, width = self.table.input_shape
        export_onnx(self.module, NetworkSpec("network", (channels, height, width), 0), path)

    def in_int8(self) -> ModuleNetwork:
        """Return the network with all nodes in int8, to measure its outputs."""
        label = self.table.network
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            self.write_fixed(path)
            arrays = [batch.detach().cpu().numpy() for batch in self.batches]
            model = GraphNetwork.read(path, None, arrays).in_int8().model
        with torch.no_grad(), evaluation_mode(self.module):
            outputs = outputs_from(self.module(self.batches[0][:1]))
        names = () if isinstance(outputs, Tensor) else tuple(outputs)
        return replace(self, module=RuntimeModule(model, label, names))

    def divided(self, count: int | None = None) -> tuple[ModuleNetwork, ModuleNetwork]:
        """Return the network with images for factors, and with other images for their losses.

        `count` is the number of the other images; by default, losses are measured on enough. With
        few images, both have all images.
        """
        lengths = [len(batch) for batch in self.batches]
        if count is None:
            count = held_out(self.table.layers, sum(lengths))
        if not count:
            return self, self
        rows = divided(lengths, count)
        parts = [
            [batch[of_batch[part]] for batch, of_batch in zip(self.batches, rows, strict=True)]
            for part in (1, 0)
        ]
        others, chosen = ([batch for batch in part if len(batch)] for part in parts)
        return replace(self, batches=others), replace(self, batches=chosen)

    def expected_from(self, original: ModuleNetwork, most: int | None = None) -> Expected | None:
        """Return the agreement with the original network; None without images or answers.

        `most` limits the number of images.
        """
        step = -(-sum(map(len, self.batches)) // most) if most and self.batches else 1
        images = [batch[::step] for batch in self.batches]
        return agreement(self.task, original.module, self.module, images)


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().cpu().float().numpy()
