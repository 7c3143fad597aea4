"""Choose the share of the original's cost for the next trial of a search."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank.core.layers import LayerTable
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_path, input_paths, output_path, parameter


@click.command(cls=Step)
@parameter("settings", "methods.<method>.ranks, JSON.", Json(BudgetSettings))
@input_path("table", "The layer table of the network, JSON.")
@parameter("layers", "Factorization by layer, JSON.", Json())
@parameter("alternatives", "Alternative factorizations, JSON.", Json(), default="[]")
@parameter("quantize", "methods.<method>.quantize; empty for float.", default="")
@input_paths("latencies", "If the cost is a latency: latencies of layers on its device, JSON.")
@input_paths("trials", "The measured losses of earlier trials, JSON.")
@output_path("output", "The share, JSON.")
def next_trial(
    settings: BudgetSettings,
    table: Path,
    layers: dict[str, str],
    alternatives: list[str],
    quantize: str,
    latencies: list[Path],
    trials: list[Path],
    output: Path,
) -> None:
    """Choose the share of the original's cost for the next trial of a search."""
    from lowrank.files import read_json, write_json
    from lowrank.ranks.bisection import Found, next_share
    from lowrank.ranks.latency_model import Latencies
    from lowrank.ranks.search_range import search_range

    search = settings.search
    between = search.between
    if between is None:
        measured = {
            device: Latencies.from_json(read_json(path))
            for device, path in zip(settings.devices, latencies, strict=True)
        }
        between = search_range(
            LayerTable.from_json(read_json(table)),
            layers,
            alternatives,
            settings,
            measured,
            quantized=bool(quantize),
        )
        if not trials:
            say(f"the search is between {between[0]:.4f} and {between[1]:.4f} of {search.cost}")
    share = next_share(
        between,
        [Found.from_json(read_json(path)) for path in trials],
        accuracy_drop=settings.allowed_drop,
        confidence=search.confidence,
    )
    say(f"trial {len(trials) + 1} of {search.trials}: {share:.4f} of {search.cost}")
    write_json(output, {"share": share})


if __name__ == "__main__":
    next_trial()
