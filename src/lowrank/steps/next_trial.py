"""Choose the share of the original's cost for the next trial of a search."""

from pathlib import Path

import click

from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import Json, input_paths, output_path, parameter


@click.command(cls=Step)
@parameter("settings", "methods.<method>.ranks, JSON.", Json(BudgetSettings))
@input_paths("trials", "The measured losses of earlier trials, JSON.")
@output_path("output", "The share, JSON.")
def next_trial(
    settings: BudgetSettings,
    trials: list[Path],
    output: Path,
) -> None:
    """Choose the share of the original's cost for the next trial of a search."""
    from lowrank.files import read_json, write_json
    from lowrank.ranks.bisection import Found, next_share

    share = next_share(
        settings.search.between,
        [Found.from_json(read_json(path)) for path in trials],
        accuracy_drop=settings.allowed_drop,
        confidence=settings.search.confidence,
    )
    search = settings.search
    say(f"trial {len(trials) + 1} of {search.trials}: {share:.4f} of {search.cost}")
    write_json(output, {"share": share})


if __name__ == "__main__":
    next_trial()
