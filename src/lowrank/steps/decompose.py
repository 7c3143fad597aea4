"""Decompose the kernel of one layer into factors, with the ranks of the plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    input_path,
    input_paths,
    network_option,
    output_path,
    parameter,
    wildcard,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowrank.core.layers import Layer
    from lowrank.factorize import Moments, Shift


@click.command(cls=Step)
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("plan", "The plan of the round, JSON.")
@wildcard("layer", "Name of the layer.")
@input_path("moments", "For `norm: activation`: moments of the layer's inputs.", optional=True)
@input_path(
    "original",
    "For `sequential`: the original network. Needs --before, --dataset and --images.",
    optional=True,
)
@input_paths("before", "For `sequential`: factors of the layers before this one.")
@network_option
@input_path("dataset", "For `sequential`: folder that the dataset step wrote.", optional=True)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("images", "For `sequential`: number of calibration images.", int, default=0)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("factors", "Factors, safetensors.")
def decompose(
    state: Path,
    table: Path,
    plan: Path,
    layer: str,
    moments: Path | None,
    original: Path | None,
    before: list[Path],
    network: NetworkSource,
    dataset: Path | None,
    splits: Path | None,
    images: int,
    threads: int,
    factors: Path,
) -> None:
    """Decompose the kernel of one layer into factors."""
    use_threads(threads)
    from lowrank.core.layers import LayerTable
    from lowrank.core.plans import Factored, Plan
    from lowrank.core.stored import write_tensors
    from lowrank.errors import UserError
    from lowrank.factorize import decompose as decomposed
    from lowrank.factorize import get_factorization
    from lowrank.files import read_json
    from lowrank.surgery.stored_factors import layer_bias, layer_weight
    from lowrank.surgery.stored_moments import layer_moments

    planned = Plan.read(plan)[layer]
    if planned.is_dense:
        # The graph is fixed before the ranks are chosen, so a dense layer has a file, too.
        write_tensors(factors, {}, {"dense_because": planned.dense_because})
        say(f"not replaced: {planned.dense_because}")
        return
    layer_entry = LayerTable.from_json(read_json(table))[layer]
    weight, bias = layer_weight(state, layer), layer_bias(state, layer)
    input_moments = layer_moments(moments, layer) if moments else None
    if original:
        if dataset is None:
            raise UserError("--original compares layers on images: it needs --dataset.")
        sample = _Sample(network, dataset, splits, images, threads)
        weight, bias, input_moments = sample.fitted(original, state, before, layer_entry)
    result = decomposed(
        get_factorization(planned.factorization),
        layer_entry,
        weight,
        bias,
        planned.ranks,
        input_moments,
    )
    factored = Factored(
        planned.factorization, planned.ranks, result.relative_error, result.sequence
    )
    write_tensors(factors, result.tensors, factored.to_json())
    errors = f"relative error {result.relative_error:.4f}"
    if result.output_error is not None:
        errors += f", of the outputs {result.output_error:.4f}"
    say(f"ranks {', '.join(map(str, planned.ranks))}: {errors}")


class _Sample:
    """Calibration images for `sequential`."""

    def __init__(
        self,
        network: NetworkSource,
        dataset: Path,
        splits: Path | None,
        images: int,
        threads: int,
    ) -> None:
        import torch

        from lowrank.data.datasets import open_dataset

        torch.set_num_threads(threads)
        self._source = network
        self._images = open_dataset(dataset, splits).calibration.sample(images)

    def fitted(
        self, original: Path, state: Path, before: list[Path], layer: Layer
    ) -> tuple[NDArray, NDArray, Moments]:
        """Return the kernel and bias that best keep a layer's outputs, and its input moments.

        The inputs are those after the factors of the layers before it.
        """
        from lowrank.factorize import carried_over, kernel_of
        from lowrank.surgery.stored_factors import layer_bias, layer_weight

        moments, shift = self._moments(original, state, before, layer)
        kernel = kernel_of(layer, layer_weight(original, layer.name), name=layer.name)
        bias = layer_bias(original, layer.name)
        return *carried_over(kernel, bias, moments, shift, positions=layer.positions), moments

    def _moments(
        self, original: Path, state: Path, before: list[Path], layer: Layer
    ) -> tuple[Moments, Shift]:
        """Return the moments of a layer's inputs, after the factors of the layers before it."""
        from lowrank.core.progress import counted
        from lowrank.data.batches import EvaluationBatches
        from lowrank.surgery.input_moments import shifted_moments
        from lowrank.surgery.states import put_stored_factors, read_state

        current = read_state(state, self._source)
        put_stored_factors(current, before)
        batches = EvaluationBatches(self._images, current.spec)
        images = counted((batches[number][0] for number in range(len(batches))), len(self._images))
        original_network = read_state(original, self._source).network
        return shifted_moments(original_network, current.network, layer, images)


if __name__ == "__main__":
    decompose()
