"""Take the cheapest trial of a search that is within its target."""

from pathlib import Path

import click

from lowrank.config.ranks import RankSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    output_path,
    parameter,
)


@click.command(cls=Step)
@parameter("settings", "methods.<method>.ranks, JSON.", Json(RankSettings))
@input_paths("trials", "What each trial lost, JSON.")
@input_paths("plans", "The plan of each trial, in the same order.")
@input_paths("states", "The network of each trial.")
@input_paths("accuracies", "The accuracy of each trial's network.")
@input_paths("curves", "The training curve of each trial.")
@input_paths("timings", "Steps and seconds of each trial.")
@input_path("control", "What the original loses in int8, JSON.", optional=True)
@output_path("plan", "The plan of the best trial.")
@output_path("state", "Its network.")
@output_path("metrics", "Its accuracy.")
@output_path("curve", "Its training curve.")
@output_path("timing", "Its steps and seconds.")
@output_path("report", "Which trial it was, JSON.")
def settle(
    settings: RankSettings,
    trials: list[Path],
    plans: list[Path],
    states: list[Path],
    accuracies: list[Path],
    curves: list[Path],
    timings: list[Path],
    control: Path | None,
    plan: Path,
    state: Path,
    metrics: Path,
    curve: Path,
    timing: Path,
    report: Path,
) -> None:
    """Take the cheapest trial of a search that is within its target."""
    import shutil

    from lowrank.files import read_json, write_json, written_whole
    from lowrank.ranks.bisection import Found, cheapest

    found = [Found.from_json(read_json(path)) for path in trials]
    limits = {
        "accuracy_drop": settings.target.accuracy_drop,
        "confidence": settings.search.confidence,
    }
    of_control = Found.from_json(read_json(control)) if control else None
    best = cheapest(found, **limits, control=of_control)
    copies = {plan: plans, state: states, metrics: accuracies, curve: curves, timing: timings}
    for output, of_trials in copies.items():
        with written_whole(output) as partial:
            shutil.copyfile(of_trials[best], partial)
    taken = found[best]
    say(
        f"trial {best + 1} of {len(found)}: {taken.share:.4f} of {settings.search.cost}, loses "
        f"{taken.drop:.2f} +- {taken.standard_error:.2f} points"
    )
    document = {
        "accuracy_drop": settings.target.accuracy_drop,
        "cost": settings.search.cost,
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
