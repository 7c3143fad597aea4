"""Measure the original network, and warn about images on which choices are not reliable."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lowrank.data.datasets import Dataset
from lowrank.evaluation.gap import gap_warning
from lowrank.evaluation.network import measure, measure_splits, text_by_split, values_by_split
from lowrank.tasks.task import Measured, Task
from lowrank.zoo.registry import NetworkSpec


def measure_original(
    task: Task,
    network: nn.Module,
    data: Dataset,
    spec: NetworkSpec,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the metrics of the original on both splits as a document.

    Returns
    -------
    dict
        `accuracy`, the values by split; `validation`, the images for choices, with a `warning` if
        the network is too good on them; `reported`, the images for reports.

    Raises
    ------
    UserError
        If the network cannot be measured on the dataset.
    """
    measured = measure_splits(task, network, data, spec)
    values = values_by_split(task, measured)
    say(text_by_split(task, values))
    if not task.has_scores:
        _warn_if_random(task, network, data, spec, measured["validation"], say)
    counts = {"validation": len(data.validation), "test": len(data.test)}
    warning = gap_warning(task.metric, measured, **counts, validation_from=data.validation_from)
    validation = {"from": data.validation_from, "images": counts["validation"]}
    if warning:
        say(f"warning: {warning}")
        validation["warning"] = warning
    return {
        "accuracy": values,
        "validation": validation,
        "reported": {"from": "test", "images": counts["test"]},
    }


def _warn_if_random(
    task: Task,
    network: nn.Module,
    data: Dataset,
    spec: NetworkSpec,
    first: Measured,
    say: Callable[[str], None],
) -> None:
    """Warn if a metric of the user differs between two measurements of the same network."""
    metric = task.metric
    again = measure(task, network, data.validation, spec).values[metric.key]
    if again != (value := first.values[metric.key]):
        say(
            f"warning: {metric.noun} of the same network is {metric.text(value)} and, measured "
            f"again, {metric.text(again)}. Choices cannot be better than this difference. Use a "
            "fixed seed in the function."
        )
