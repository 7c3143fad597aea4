"""Turn one layer's kernel into factors at the ranks that the plan gives."""

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
    from lowrank.core.layers import Layer
    from lowrank.factorize import Moments, Shift


@click.command(cls=Step)
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("plan", "The plan of the round, JSON.")
@wildcard("layer", "Name of the layer.")
@input_path("moments", "Moments of its inputs, for `norm: activation`.", optional=True)
@input_path(
    "original",
    "For `sequential`: the original; --before, --dataset and --images go with it.",
    optional=True,
)
@input_paths("before", "Factors of the layers decomposed before this one.")
@network_option
@input_path("dataset", "For `sequential`: folder of the dataset step.", optional=True)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("images", "For `sequential`: training images.", int, default=0)
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
    """Turn one layer's kernel into factors."""
    use_threads(threads)
    from lowrank.core.layers import LayerTable
    from lowrank.core.plans import Factored, Plan
    from lowrank.core.stored import write_tensors
    from lowrank.factorize import carried_over, get_factorization, kernel_of
    from lowrank.factorize import decompose as decomposed
    from lowrank.files import read_json
    from lowrank.surgery.stored_factors import layer_bias, layer_weight
    from lowrank.surgery.stored_moments import layer_moments

    planned = Plan.read(plan)[layer]
    if planned.is_dense:
        # The graph is known before the ranks are, so a layer that is left alone has its file too.
        write_tensors(factors, {}, {"dense_because": planned.dense_because})
        say(f"stays as it is: {planned.dense_because}")
        return
    known = LayerTable.from_json(read_json(table))[layer]
    weight, bias = layer_weight(state, layer), layer_bias(state, layer)
    of_inputs = layer_moments(moments, layer) if moments else None
    if original:
        sample = _Sample(network, dataset, splits, images, threads)
        of_inputs, shift = sample.moments(original, state, before, known)
        kernel = kernel_of(known, layer_weight(original, layer), name=layer)
        bias = layer_bias(original, layer)
        weight, bias = carried_over(kernel, bias, of_inputs, shift)
    result = decomposed(
        get_factorization(planned.factorization), known, weight, bias, planned.ranks, of_inputs
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
    """Training images, for `sequential`."""

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
        self._images = open_dataset(dataset, splits).train.sample(images)

    def moments(
        self, original: Path, state: Path, before: list[Path], layer: Layer
    ) -> tuple[Moments, Shift]:
        """Of a layer's inputs behind the factors of those before it."""
        from lowrank.core.plans import Factored
        from lowrank.core.progress import counted
        from lowrank.core.stored import read_header, read_tensors
        from lowrank.data.batches import EvaluationBatches
        from lowrank.surgery.input_moments import shifted_moments
        from lowrank.surgery.states import put_factors, read_state

        now = read_state(state, self._source)
        for file in before:
            if "dense_because" not in (header := read_header(file)):
                sequence = Factored.from_json(header).sequence
                put_factors(now.network, file.stem, sequence, read_tensors(file), source=str(file))
        batches = EvaluationBatches(self._images, now.spec)
        images = counted((batches[number][0] for number in range(len(batches))), len(self._images))
        whole = read_state(original, self._source).network
        return shifted_moments(whole, now.network, layer, images)


if __name__ == "__main__":
    decompose()
