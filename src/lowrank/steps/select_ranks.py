"""Choose the ranks of a round's layers, from the weights before the round."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import LayerTable
from lowrank.core.plans import Plan, known_losses
from lowrank.ranks.any_rule import AnyRankSettings
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    network_option,
    output_path,
    parameter,
    reference_option,
    task_option,
    wildcard,
)

if TYPE_CHECKING:
    import torch

    from lowrank.ranks.latency_model import Latencies


@click.command(cls=Step)
@input_path("state", "The network before the round.")
@input_path("table", "Its layer table, JSON.")
@input_path("replaceable", "Layers that must not be replaced, with reasons, JSON.", optional=True)
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("settings", "methods.<method>.ranks, JSON.", Json(AnyRankSettings))
@parameter(
    "stages_left", "Number of rounds until the layers have their final ranks.", int, default=1
)
@parameter(
    "all_layers",
    "For a rank rule that looks at all layers: factorization by layer of all rounds, JSON.",
    Json(),
    default="{}",
)
@parameter("alternatives", "For `budget`: alternative factorizations, JSON.", Json(), default="[]")
@network_option
@task_option
@reference_option
@input_path(
    "dataset",
    "Folder that the dataset step wrote: to measure losses, and the accuracy drop of the ranks.",
    optional=True,
)
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path("moments", "For `norm: activation`: moments of the layers' inputs.", optional=True)
@input_paths(
    "latencies", "For a target of `latency_ms`: latencies of layers on each of its devices, JSON."
)
@parameter("quantize", "methods.<method>.quantize; empty for float.", default="")
@input_path("aim", "For a target of `accuracy_drop`: the share of the trial, JSON.", optional=True)
@input_paths("known", "Plans of earlier trials, whose losses are reused.")
@input_path(
    "first", "For a rank rule that looks at all layers: plan of the first round.", optional=True
)
@wildcard("method", "Name of the method, for messages.", default="")
@parameter(
    "predict", "Measure the accuracy drop of the ranks (needs --dataset).", bool, default=True
)
@parameter("threads", "CPU threads of the linear algebra.", int)
@parameter("device", "`select_ranks.device` of params.yaml.", default="cpu")
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
    task: str,
    reference: Path | None,
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
    device: str,
    plan: Path,
) -> None:
    """Choose the ranks of a round's layers."""
    use_threads(threads)
    from lowrank.evaluation.stored_network import MeasuringImages, StoredNetwork
    from lowrank.files import read_json, write_json
    from lowrank.ranks.choice import RankChoice

    if aim and isinstance(settings, BudgetSettings):
        settings = settings.at_share(read_json(aim)["share"])
    images = None
    if dataset and layers:
        count = settings.measured_images
        pick = functools.partial(_pick_device, device)
        images = MeasuringImages(network, dataset, splits, count, threads, task, reference, pick)
    choice = RankChoice(
        network=StoredNetwork(state, moments, images, say),
        table=_read_table(table, replaceable),
        layers=layers,
        all_layers=all_layers,
        alternatives=alternatives,
        latencies=_read_latencies(settings, latencies),
        quantized=bool(quantize),
        losses=known_losses(map(Plan.read, known)),
        shares=Plan.read(first).shares if first else None,
        stages_left=stages_left,
    )
    document = choice.plan(settings, measure=predict and images is not None, say=say)
    if document.expected and not aim:
        # A trial of a search may lose any accuracy, because the search can choose another trial.
        where = f"methods.{method}.ranks" if method else "ranks"
        choice.refuse_what_ruins(settings, document.expected, where=where, say=say)
    write_json(plan, document.to_json())


def _pick_device(name: str) -> torch.device:
    # PyTorch is only imported for measurements.
    from lowrank.training.hardware import pick_device

    return pick_device(name)


def _read_table(table: Path, replaceable: Path | None) -> LayerTable:
    from lowrank.files import read_json

    layer_table = LayerTable.from_json(read_json(table))
    if replaceable is None:
        return layer_table
    return layer_table.with_obstacles(read_json(replaceable)["stays_dense"])


def _read_latencies(settings: RankSettings, paths: list[Path]) -> dict[str, Latencies]:
    from lowrank.files import read_json
    from lowrank.ranks.latency_model import Latencies

    return {
        device: Latencies.from_json(read_json(path))
        for device, path in zip(settings.devices, paths, strict=bool(paths))
    }


if __name__ == "__main__":
    select_ranks()
