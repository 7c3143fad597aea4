"""Turn one layer's kernel into factors at the ranks that the plan gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.steps.common import Paths, Step, say, use_threads

if TYPE_CHECKING:
    from lowrank.core.layers import Layer
    from lowrank.factorize import Moments, Shift


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--plan", type=Path, required=True, help="The plan of the round, JSON.")
@click.option("--layer", required=True, help="Name of the layer.")
@click.option("--moments", default="", help="Moments of its inputs, for `norm: activation`.")
@click.option(
    "--original",
    default="",
    help="For `sequential`: the original; --network, --before, --dataset, --images go with it.",
)
@click.option(
    "--before", type=Paths(), default="", help="Factors of the layers decomposed before this one."
)
@click.option("--network", default="", help="For `sequential`: as params.yaml describes it.")
@click.option("--dataset", default="", help="For `sequential`: folder of the dataset step.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--images", type=int, default=0, help="For `sequential`: training images.")
@click.option("--threads", type=int, required=True)
@click.option("--factors", type=Path, required=True, help="Output: factors, safetensors.")
def decompose(
    state: Path,
    table: Path,
    plan: Path,
    layer: str,
    moments: str,
    original: str,
    before: list[Path],
    network: str,
    dataset: str,
    splits: str,
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
    of_inputs = layer_moments(Path(moments), layer) if moments else None
    if original:
        sample = _Sample(network, Path(dataset), splits, images, threads)
        of_inputs, shift = sample.moments(Path(original), state, before, known)
        kernel = kernel_of(known, layer_weight(Path(original), layer), name=layer)
        bias = layer_bias(Path(original), layer)
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

    def __init__(self, network: str, dataset: Path, splits: str, images: int, threads: int) -> None:
        import torch

        from lowrank.config.network_source import NetworkSource
        from lowrank.data.datasets import open_dataset

        torch.set_num_threads(threads)
        self._source = NetworkSource.parse(network)
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
