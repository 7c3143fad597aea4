"""Choose the ranks of a round's layers on the weights as the round finds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.ranks import RankSettings, Target
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Loss, Plan, PlannedLayer
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    network_option,
    output_path,
    parameter,
    wildcard,
)

if TYPE_CHECKING:
    from lowrank.ranks import Losses


@click.command(cls=Step)
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("replaceable", "Layers that must stay, and why, JSON.", optional=True)
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("settings", "methods.<method>.ranks, JSON.", Json(RankSettings))
@parameter("stages_left", "Rounds in which to come down to the rule's ranks.", int, default=1)
@parameter(
    "all_layers",
    "Factorization by layer of every round, JSON: for a rule that shares out ranks.",
    Json(),
    default="{}",
)
@parameter("alternatives", "For `budget`: further factorizations, JSON.", Json(), default="[]")
@network_option
@input_path(
    "dataset",
    "Folder of the dataset step: for such a rule, and to say what the ranks cost in accuracy.",
    optional=True,
)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path("moments", "For `norm: activation`: moments of the layers.", optional=True)
@input_paths(
    "latencies", "For a target of latencies: what layers take, JSON, for each of its devices."
)
@parameter("quantize", "methods.<method>.quantize; empty: in float.", default="")
@input_path("aim", "For a target of accuracy: what the trial may cost, JSON.", optional=True)
@input_paths("known", "Plans of earlier trials, whose losses are known.")
@input_path("first", "For such a rule, after the first round: its plan.", optional=True)
@wildcard("method", "Its name, for messages.", default="")
@parameter("predict", "Try what the ranks cost in accuracy (--dataset).", bool, default=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("plan", "The plan of the round, JSON.")
def select_ranks(
    state: Path,
    table: Path,
    replaceable: Path | None,
    layers: dict[str, str],
    settings: RankSettings,
    stages_left: int,
    all_layers: dict[str, str],
    alternatives: list[str],
    network: NetworkSource,
    dataset: Path | None,
    splits: Path | None,
    moments: Path | None,
    latencies: list[Path],
    quantize: str,
    aim: Path | None,
    known: list[Path],
    first: Path | None,
    method: str,
    predict: bool,
    threads: int,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.files import read_json, write_json
    from lowrank.ranks.choice import RankChoice
    from lowrank.ranks.latency_model import Latencies
    from lowrank.tasks.stored_network import MeasuringImages, StoredNetwork

    layer_table = LayerTable.from_json(read_json(table))
    if replaceable:
        layer_table = layer_table.with_obstacles(read_json(replaceable)["stays_dense"])
    if aim:
        target = Target.of(settings.search.cost, read_json(aim)["share"])
        settings = settings.model_copy(update={"target": target})
    losses: Losses = {}
    for loss in (loss for path in known for loss in Plan.read(path).losses):
        losses.setdefault((loss.layer, loss.factorization), {})[loss.ranks] = loss.nats
    images = None
    if dataset and layers:
        images = MeasuringImages(network, dataset, splits, settings.images, threads)
    choice = RankChoice(
        network=StoredNetwork(state, moments, images, say),
        table=layer_table,
        layers=layers,
        all_layers=all_layers,
        alternatives=alternatives,
        latencies={
            device: Latencies.from_json(read_json(path))
            for device, path in zip(settings.devices, latencies, strict=bool(latencies))
        },
        quantized=bool(quantize),
        losses=losses,
        shares=Plan.read(first).shares if first else None,
        stages_left=stages_left,
    )
    chosen = choice.at(settings, say=say)
    for planned in chosen.layers:
        say(_line(planned))
    expected = choice.expected(chosen.layers, say=say) if images and predict else None
    if expected and not aim:
        # A trial of a search may lose anything: the search takes another one then.
        where = f"methods.{method}.ranks" if method else "ranks"
        choice.refuse_what_ruins(settings, expected, where=where, say=say)
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
