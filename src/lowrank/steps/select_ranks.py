"""Choose the ranks of a round's layers on the weights as the round finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.plan import LayerTable, Plan
from lowrank.steps.common import Json, Step, say, use_threads

if TYPE_CHECKING:
    from lowrank.factorize import Decomposition
    from lowrank.params import RankSettings


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--layers", type=Json(), required=True, help="Factorization by layer, JSON.")
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option(
    "--stages-left", type=int, default=1, help="Rounds in which to come down to the rule's ranks."
)
@click.option(
    "--all-layers",
    type=Json(),
    default="{}",
    help="Factorization by layer of every round, JSON: for a rule that shares out ranks.",
)
@click.option("--dataset", default="", help="For such a rule: folder of the dataset step.")
@click.option("--first", default="", help="For such a rule, after the first round: its plan.")
@click.option("--threads", type=int, required=True)
@click.option("--plan", type=Path, required=True, help="Output: the plan of the round, JSON.")
def select_ranks(
    state: Path,
    table: Path,
    layers: dict[str, str],
    settings: dict[str, Any],
    stages_left: int,
    all_layers: dict[str, str],
    dataset: str,
    first: str,
    threads: int,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.factorize import get_factorization
    from lowrank.files import read_json, write_json
    from lowrank.ranks import choose_ranks, leave_negligible
    from lowrank.ranks.base import rank_settings
    from lowrank.steps.weights import layer_factored, layer_weight

    network = LayerTable.from_json(read_json(table))
    rule = rank_settings(settings)
    if rule.select != "fixed":
        network = leave_negligible(network, rule.negligible)
    sensitivity, shares = {}, {}
    if rule.select == "sensitivity":
        if first:
            shares = Plan.from_json(read_json(first)).shares
        else:
            sensitivity, shares = _shared_out(
                state, network, all_layers, rule, Path(dataset), threads
            )
        rule = rule.model_copy(update={"table": shares})
    planned = []
    for name, factorization in layers.items():
        chosen = choose_ranks(
            network[name],
            layer_weight(state, name),
            get_factorization(factorization),
            rule,
            factored=layer_factored(state, name),
            stages_left=stages_left,
        )
        planned.append(chosen)
        outcome = (
            f"stays as it is: {chosen.dense_because}"
            if chosen.is_dense
            else (
                f"{factorization} at ranks {', '.join(map(str, chosen.ranks))}, "
                f"{chosen.macs[0] / chosen.macs[1]:.1f}x fewer MACs"
            )
        )
        say("; ".join([f"{name}: {outcome}", *chosen.notes]))
    shares = {} if first else shares
    write_json(plan, Plan(tuple(planned), sensitivity, shares).to_json())


def _shared_out(
    state: Path,
    table: LayerTable,
    layers: dict[str, str],
    rule: RankSettings,
    dataset: Path,
    threads: int,
) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """Measure what the network loses by each layer, and share out the ranks accordingly."""
    import torch

    from lowrank.factorize import decompose, get_factorization, one_group
    from lowrank.networks.states import read_state
    from lowrank.ranks import ranks_within, shared_out
    from lowrank.ranks.scale import dense_cost
    from lowrank.steps.weights import layer_bias, layer_weight
    from lowrank.training.datasets import open_dataset
    from lowrank.training.sensitivity import losses_by_layer

    candidates = [
        (table[name], method, method.full_ranks(one_group(table[name])))
        for name, method in ((name, get_factorization(each)) for name, each in layers.items())
        if not (table[name].not_factored or method.applies_to(table[name]))
    ]

    def replacements() -> Iterator[tuple[str, Decomposition]]:
        for layer, method, full_ranks in candidates:
            limit = dense_cost(layer, rule.cost) / rule.trial_ratio
            ranks = ranks_within(layer, method, full_ranks, limit=limit, cost=rule.cost)
            weight, bias = layer_weight(state, layer.name), layer_bias(state, layer.name)
            yield layer.name, decompose(method, layer, weight, bias, ranks)

    torch.set_num_threads(threads)
    original = read_state(state)
    images = open_dataset(dataset).validation.sample(rule.images)
    losses = losses_by_layer(original.network, original.spec, images, replacements(), say=say)
    sensitivity, shares = shared_out(candidates, losses, rule)
    order = sorted(sensitivity, key=sensitivity.get, reverse=True)
    say(f"most sensitive first: [{', '.join(order)}]")
    return sensitivity, shares


if __name__ == "__main__":
    select_ranks()
