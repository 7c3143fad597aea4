"""Choose the ranks of a round's layers on the weights as the round finds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Loss, Plan, PlannedLayer
from lowrank.steps.common import Json, Paths, Step, say, use_threads

if TYPE_CHECKING:
    from lowrank.ranks import Losses


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network before the round.")
@click.option("--table", type=Path, required=True, help="Its layer table, JSON.")
@click.option("--replaceable", default="", help="Layers that must stay, and why, JSON.")
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
@click.option(
    "--alternatives", type=Json(), default="[]", help="For `budget`: further factorizations, JSON."
)
@click.option(
    "--network", "described", default="", help="For such a rule: as params.yaml describes it."
)
@click.option(
    "--dataset",
    default="",
    help="Folder of the dataset step: for such a rule, and to say what the ranks cost in accuracy.",
)
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--moments", default="", help="For `norm: activation`: moments of the layers.")
@click.option(
    "--latencies",
    type=Paths(),
    default="",
    help="For a target of latencies: what layers take, JSON, for each of its devices.",
)
@click.option("--quantize", default="", help="methods.<method>.quantize; empty: in float.")
@click.option("--aim", default="", help="For a target of accuracy: what the trial may cost, JSON.")
@click.option(
    "--known", type=Paths(), default="", help="Plans of earlier trials, whose losses are known."
)
@click.option("--first", default="", help="For such a rule, after the first round: its plan.")
@click.option("--method", default="", help="Its name, for messages.")
@click.option(
    "--predict/--no-predict", default=True, help="Try what the ranks cost in accuracy (--dataset)."
)
@click.option("--threads", type=int, required=True)
@click.option("--plan", type=Path, required=True, help="Output: the plan of the round, JSON.")
def select_ranks(
    state: Path,
    table: Path,
    replaceable: str,
    layers: dict[str, str],
    settings: dict[str, Any],
    stages_left: int,
    all_layers: dict[str, str],
    alternatives: list[str],
    described: str,
    dataset: str,
    splits: str,
    moments: str,
    latencies: list[Path],
    quantize: str,
    aim: str,
    known: list[Path],
    first: str,
    method: str,
    predict: bool,
    threads: int,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.config.ranks import Target
    from lowrank.files import read_json, write_json
    from lowrank.ranks.rule import rank_settings
    from lowrank.steps.choosing import Choice, Original, refuse_what_ruins

    network = LayerTable.from_json(read_json(table))
    if replaceable:
        network = network.with_obstacles(read_json(replaceable)["stays_dense"])
    rule = rank_settings(settings)
    if aim:
        target = Target.of(rule.search.cost, read_json(aim)["share"])
        rule = rule.model_copy(update={"target": target})
    losses: Losses = {}
    for loss in (loss for path in known for loss in Plan.read(path).losses):
        losses.setdefault((loss.layer, loss.factorization), {})[loss.ranks] = loss.nats
    original = None
    if dataset and layers:
        original = Original(described, state, Path(dataset), splits, rule, moments, threads)
    choice = Choice(
        state=state,
        table=network,
        layers=layers,
        all_layers=all_layers,
        alternatives=alternatives,
        original=original,
        latencies=dict(zip(rule.devices, latencies, strict=True)) if latencies else {},
        quantized=bool(quantize),
        losses=losses,
        shares=Plan.read(first).shares if first else None,
        stages_left=stages_left,
    )
    chosen = choice.at(rule, say=say)
    for each in chosen.layers:
        say(_line(each))
    expected = choice.expected(chosen.layers) if original and predict else None
    if expected and not aim:
        # A trial of a search may lose anything: the search takes another one then.
        refuse_what_ruins(choice, rule, expected, method)
    measured = tuple(
        Loss(*key, ranks, nats) for key, found in losses.items() for ranks, nats in found.items()
    )
    shares = {} if first else chosen.shares
    document = Plan(chosen.layers, chosen.sensitivity, shares, measured, expected)
    write_json(plan, document.to_json())


def _line(chosen: PlannedLayer) -> str:
    outcome = (
        f"stays as it is: {chosen.dense_because}"
        if chosen.is_dense
        else (
            f"{chosen.factorization} at ranks {', '.join(map(str, chosen.ranks))}, "
            f"{chosen.macs[0] / chosen.macs[1]:.1f}x fewer MACs"
        )
    )
    return "; ".join([f"{chosen.name}: {outcome}", *chosen.notes])


if __name__ == "__main__":
    select_ranks()
