"""Turn one layer's kernel into factors at the ranks that the plan gives."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say, use_threads


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--plan", type=Path, required=True, help="The plan of the round, JSON.")
@click.option("--layer", required=True, help="Name of the layer.")
@click.option("--moments", default="", help="Moments of its inputs, for `norm: activation`.")
@click.option("--threads", type=int, required=True)
@click.option("--factors", type=Path, required=True, help="Output: factors, safetensors.")
def decompose(
    state: Path, table: Path, plan: Path, layer: str, moments: str, threads: int, factors: Path
) -> None:
    """Turn one layer's kernel into factors."""
    use_threads(threads)
    from lowrank.factorize import decompose as decomposed
    from lowrank.factorize import get_factorization
    from lowrank.files import read_json
    from lowrank.plan import Factored, LayerTable, Plan
    from lowrank.steps.moments import layer_moments
    from lowrank.steps.weights import layer_bias, layer_weight
    from lowrank.stored import write_tensors

    planned = Plan.from_json(read_json(plan))[layer]
    if planned.is_dense:
        # The graph is known before the ranks are, so a layer that is left alone has its file too.
        write_tensors(factors, {}, {"dense_because": planned.dense_because})
        say(f"stays as it is: {planned.dense_because}")
        return
    result = decomposed(
        get_factorization(planned.factorization),
        LayerTable.from_json(read_json(table))[layer],
        layer_weight(state, layer),
        layer_bias(state, layer),
        planned.ranks,
        layer_moments(Path(moments), layer) if moments else None,
    )
    factored = Factored(
        planned.factorization, planned.ranks, result.relative_error, result.sequence
    )
    write_tensors(factors, result.tensors, factored.to_json())
    errors = f"relative error {result.relative_error:.4f}"
    if result.output_error is not None:
        errors += f", of the outputs {result.output_error:.4f}"
    say(f"ranks {', '.join(map(str, planned.ranks))}: {errors}")


if __name__ == "__main__":
    decompose()
