"""The share of the original's cost that the next trial of a search is to have."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Paths, Step, say


@click.command(cls=Step)
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option("--trials", type=Paths(), default="", help="What earlier trials lost, JSON.")
@click.option("--output", type=Path, required=True, help="Output: the share, JSON.")
def next_trial(settings: dict[str, Any], trials: list[Path], output: Path) -> None:
    """The share of the original's cost that the next trial of a search is to have."""
    from lowrank.config.ranks import RankSettings
    from lowrank.files import read_json, write_json
    from lowrank.ranks.bisection import Found, next_share

    rule = RankSettings.model_validate(settings)
    share = next_share(
        rule.search.between,
        [Found.from_json(read_json(path)) for path in trials],
        accuracy_drop=rule.target.accuracy_drop,
        confidence=rule.search.confidence,
    )
    say(f"trial {len(trials) + 1} of {rule.search.trials}: {share:.4f} of {rule.search.cost}")
    write_json(output, {"share": share})


if __name__ == "__main__":
    next_trial()
