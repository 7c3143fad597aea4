"""Take the cheapest trial of a search that is within its target."""

from pathlib import Path
from typing import Any

import click

from lowrank.steps.common import Json, Paths, Step, say


@click.command(cls=Step)
@click.option("--settings", type=Json(), required=True, help="methods.<method>.ranks, JSON.")
@click.option("--trials", type=Paths(), required=True, help="What the trials lost, JSON.")
@click.option(
    "--files", type=Paths(), required=True, help="The files of every trial, one trial's together."
)
@click.option("--outputs", type=Paths(), required=True, help="Outputs: copies of the best one's.")
@click.option("--report", type=Path, required=True, help="Output: which it was, JSON.")
def settle(
    settings: dict[str, Any],
    trials: list[Path],
    files: list[Path],
    outputs: list[Path],
    report: Path,
) -> None:
    """Take the cheapest trial of a search that is within its target."""
    import shutil

    from lowrank.files import read_json, write_json, written_whole
    from lowrank.params import RankSettings
    from lowrank.search import Found, cheapest

    rule = RankSettings.model_validate(settings)
    found = [Found.from_json(read_json(path)) for path in trials]
    best = cheapest(
        found, accuracy_drop=rule.target.accuracy_drop, confidence=rule.search.confidence
    )
    each = len(outputs)
    for source, output in zip(files[best * each : (best + 1) * each], outputs, strict=True):
        with written_whole(output) as partial:
            shutil.copyfile(source, partial)
    say(
        f"trial {best + 1} of {len(found)}: {found[best].share:.4f} of {rule.search.cost}, loses "
        f"{found[best].drop:.2f} +- {found[best].standard_error:.2f} points"
    )
    write_json(
        report,
        {
            "accuracy_drop": rule.target.accuracy_drop,
            "cost": rule.search.cost,
            "trials": len(found),
            "taken": best + 1,
            **found[best].to_json(),
        },
    )


if __name__ == "__main__":
    settle()
