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
@click.option("--control", default="", help="What the original loses in int8, JSON; empty: none.")
@click.option("--outputs", type=Paths(), required=True, help="Outputs: copies of the best one's.")
@click.option("--report", type=Path, required=True, help="Output: which it was, JSON.")
def settle(
    settings: dict[str, Any],
    trials: list[Path],
    files: list[Path],
    control: str,
    outputs: list[Path],
    report: Path,
) -> None:
    """Take the cheapest trial of a search that is within its target."""
    import shutil

    from lowrank.config.ranks import RankSettings
    from lowrank.files import read_json, write_json, written_whole
    from lowrank.ranks.bisection import Found, cheapest

    rule = RankSettings.model_validate(settings)
    found = [Found.from_json(read_json(path)) for path in trials]
    limits = {
        "accuracy_drop": rule.target.accuracy_drop,
        "confidence": rule.search.confidence,
    }
    of_control = Found.from_json(read_json(control)) if control else None
    best = cheapest(found, **limits, control=of_control)
    each = len(outputs)
    for source, output in zip(files[best * each : (best + 1) * each], outputs, strict=True):
        with written_whole(output) as partial:
            shutil.copyfile(source, partial)
    taken = found[best]
    say(
        f"trial {best + 1} of {len(found)}: {taken.share:.4f} of {rule.search.cost}, loses "
        f"{taken.drop:.2f} +- {taken.standard_error:.2f} points"
    )
    document = {
        "accuracy_drop": rule.target.accuracy_drop,
        "cost": rule.search.cost,
        "trials": len(found),
        "taken": best + 1,
        **taken.to_json(),
        "within": taken.within(**limits),
    }
    if of_control:
        document["control"] = {
            "drop": of_control.drop,
            "standard_error": of_control.standard_error,
            "within": of_control.within(**limits),
        }
        say(
            f"int8 of the original loses {of_control.drop:.2f} +- {of_control.standard_error:.2f} "
            "points; which of the two is the answer is decided when both are measured"
        )
    write_json(report, document)


if __name__ == "__main__":
    settle()
