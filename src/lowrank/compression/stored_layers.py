"""Decompose layers of a stored network, and write their factors to files."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Factored, Plan
from lowrank.core.stored import write_tensors
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization
from lowrank.files import read_json
from lowrank.surgery.stored_factors import layer_bias, layer_weight
from lowrank.surgery.stored_moments import layer_moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lowrank.factorize import Moments, Shift


@dataclass(frozen=True)
class CalibrationImages:
    """Images on which `sequential` compares a layer before and after a round.

    Attributes
    ----------
    original
        File of the original network.
    network
        How the network is built.
    dataset, splits
        Folders that the steps of these names wrote.
    images
        Number of images.
    threads
        CPU threads of PyTorch.
    """

    original: Path
    network: NetworkSource
    dataset: Path
    splits: Path | None
    images: int
    threads: int

    @classmethod
    def of(
        cls,
        original: Path | None,
        network: NetworkSource,
        dataset: Path | None,
        splits: Path | None,
        images: int,
        threads: int,
    ) -> CalibrationImages | None:
        """Return the images of a step's options; None without an original, so without `sequential`.

        Raises UserError if there is an original, but no dataset.
        """
        if original is None:
            return None
        if dataset is None:
            raise UserError("--original compares layers on images: it needs --dataset.")
        return cls(original, network, dataset, splits, images, threads)


@dataclass(frozen=True)
class StoredLayers:
    """Layers of a stored network that a round decomposes.

    Attributes
    ----------
    state
        File of the network before the round.
    table
        File of its layer table.
    plan
        File of the plan of the round.
    moments
        File with the moments of the layers' inputs, for `norm: activation`.
    calibration
        Images, for `sequential`.
    """

    state: Path
    table: Path
    plan: Path
    moments: Path | None = None
    calibration: CalibrationImages | None = None

    def decompose(self, name: str, before: Sequence[Path], factors: Path) -> str:
        """Write the factors of a layer to a file, and return a sentence about them.

        `before` are the factors of the layers before it, for `sequential`. A layer that the plan
        leaves dense gets a file without factors, because the graph is fixed before the ranks are
        chosen.
        """
        planned = self._plan[name]
        if planned.is_dense:
            write_tensors(factors, {}, {"dense_because": planned.dense_because})
            return f"not replaced: {planned.dense_because}"
        layer = self._layers[name]
        weight, bias = layer_weight(self.state, name), layer_bias(self.state, name)
        moments = layer_moments(self.moments, name) if self.moments else None
        if self.calibration:
            weight, bias, moments = self._fitted(self.calibration, layer, before)
        factorization = get_factorization(planned.factorization)
        result = decompose(factorization, layer, weight, bias, planned.ranks, moments)
        factored = Factored(
            planned.factorization, planned.ranks, result.relative_error, result.sequence
        )
        write_tensors(factors, result.tensors, factored.to_json())
        errors = f"relative error {result.relative_error:.4f}"
        if result.output_error is not None:
            errors += f", of the outputs {result.output_error:.4f}"
        return f"ranks {', '.join(map(str, planned.ranks))}: {errors}"

    def decompose_all(self, folder: Path, processes: int) -> Iterator[str]:
        """Write the factors of all layers to a folder, and yield a sentence about each.

        Up to `processes` layers are decomposed at the same time; with `sequential`, one after the
        other in the order of the network.
        """
        planned = {layer.name for layer in self._plan.layers}
        names = [layer.name for layer in self._layers.layers if layer.name in planned]
        files = [folder / f"{name}.safetensors" for name in names]
        if self.calibration:
            for number, (name, file) in enumerate(zip(names, files, strict=True)):
                yield f"{name}: {self.decompose(name, files[:number], file)}"
            return
        # A process that has loaded PyTorch must not be forked.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            sentences = [
                pool.submit(self.decompose, name, (), file)
                for name, file in zip(names, files, strict=True)
            ]
            for name, sentence in zip(names, sentences, strict=True):
                yield f"{name}: {sentence.result()}"

    @cached_property
    def _plan(self) -> Plan:
        return Plan.read(self.plan)

    @cached_property
    def _layers(self) -> LayerTable:
        return LayerTable.from_json(read_json(self.table))

    def _fitted(
        self, calibration: CalibrationImages, layer: Layer, before: Sequence[Path]
    ) -> tuple[NDArray, NDArray, Moments]:
        """Return the kernel and bias that best keep a layer's outputs, and its input moments.

        The inputs are those after the factors of the layers before it.
        """
        from lowrank.factorize import carried_over, kernel_of

        original = calibration.original
        moments, shift = self._moments(calibration, layer, before)
        kernel = kernel_of(layer, layer_weight(original, layer.name), name=layer.name)
        bias = layer_bias(original, layer.name)
        return *carried_over(kernel, bias, moments, shift, positions=layer.positions), moments

    def _moments(
        self, calibration: CalibrationImages, layer: Layer, before: Sequence[Path]
    ) -> tuple[Moments, Shift]:
        """Return the moments of a layer's inputs, after the factors of the layers before it."""
        import torch

        from lowrank.core.progress import counted
        from lowrank.data.batches import EvaluationBatches
        from lowrank.data.datasets import open_dataset
        from lowrank.surgery.input_moments import shifted_moments
        from lowrank.surgery.states import put_stored_factors, read_state

        torch.set_num_threads(calibration.threads)
        data = open_dataset(calibration.dataset, calibration.splits)
        sample = data.calibration.sample(calibration.images)
        current = read_state(self.state, calibration.network)
        put_stored_factors(current, before)
        batches = EvaluationBatches(sample, current.spec)
        images = counted((batches[number][0] for number in range(len(batches))), len(sample))
        original = read_state(calibration.original, calibration.network).network
        return shifted_moments(original, current.network, layer, images)
