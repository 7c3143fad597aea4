"""Choose the ranks of a round's layers on the weights as the round finds them."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Step, say, use_threads


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--layers", type=Json(), required=True, help="Factorization by layer, JSON.")
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option("--threads", type=int, required=True)
@click.option("--plan", type=Path, required=True, help="Output: the plan of the round, JSON.")
def select_ranks(
    state: Path,
    table: Path,
    layers: dict[str, str],
    settings: dict[str, Any],
    threads: int,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.factorize import get_factorization
    from lowrank.files import read_json, write_json
    from lowrank.plan import LayerTable, Plan
    from lowrank.ranks import choose_ranks
    from lowrank.steps.weights import layer_weight

    network = LayerTable.from_json(read_json(table))
    planned = []
    for name, factorization in layers.items():
        chosen = choose_ranks(
            network[name], layer_weight(state, name), get_factorization(factorization), settings
        )
        planned.append(chosen)
        outcome = (
            f"stays dense: {chosen.dense_because}"
            if chosen.is_dense
            else (
                f"{factorization} at ranks {', '.join(map(str, chosen.ranks))}, "
                f"{chosen.macs[0] / chosen.macs[1]:.1f}x fewer MACs"
            )
        )
        say("; ".join([f"{name}: {outcome}", *chosen.notes]))
    write_json(plan, Plan(tuple(planned)).to_json())


if __name__ == "__main__":
    select_ranks()
