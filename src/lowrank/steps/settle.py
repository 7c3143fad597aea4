"""Choose the cheapest trial of a search that meets the target."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.steps.common import Step, say
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    output_path,
    parameter,
    task_option,
)

if TYPE_CHECKING:
    from lowrank.core.metric import Metric
    from lowrank.ranks.bisection import Found


@click.command(cls=Step)
@task_option
@parameter("settings", "methods.<method>.ranks, JSON.", Json(BudgetSettings))
@input_paths("trials", "The measured loss of each trial, JSON.")
@input_path("control", "The measured loss of the original in int8, JSON.", optional=True)
@output_path("report", "Number, cost and loss of the best trial, JSON.")
def settle(
    task: str,
    settings: BudgetSettings,
    trials: list[Path],
    control: Path | None,
    report: Path,
) -> None:
    """Choose the cheapest trial of a search that meets the target."""
    from lowrank.files import read_json, write_json
    from lowrank.ranks.bisection import Found, cheapest
    from lowrank.tasks import get_task

    losses = [Found.from_json(read_json(path)) for path in trials]
    control_loss = Found.from_json(read_json(control)) if control else None
    metric = get_task(task).metric
    limits = settings.allowed_drop, settings.search.confidence
    best = cheapest(
        losses,
        accuracy_drop=settings.allowed_drop,
        confidence=settings.search.confidence,
        control=control_loss,
        unit=metric.difference_unit,
    )
    chosen = losses[best]
    say(
        f"trial {best + 1} of {len(losses)}: {chosen.share:.4f} of {settings.search.cost}, loses "
        f"{_described(chosen, metric)}"
    )
    document = {
        "accuracy_drop": settings.target.accuracy_drop,
        "cost": settings.search.cost,
        "trials": len(losses),
        "taken": best + 1,
        **chosen.to_json(),
        "within": chosen.within(*limits),
    }
    if control_loss:
        document["control"] = {
            "drop": control_loss.drop,
            "standard_error": control_loss.standard_error,
            "within": control_loss.within(*limits),
        }
        say(
            f"int8 of the original loses {_described(control_loss, metric)}; the step summarize "
            "chooses between it and the trial after both are measured"
        )
    write_json(report, document)


def _described(loss: "Found", metric: "Metric") -> str:
    return f"{metric.number(loss.drop)} +- {metric.difference(loss.standard_error)}"


if __name__ == "__main__":
    settle()
