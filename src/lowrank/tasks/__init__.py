"""Tasks: what "accurate" means for a network. One file for each task.

The tasks are found by name in a registry. Other packages add tasks through entry points of the
group `lowrank.tasks`.
"""

from collections.abc import Iterable, Mapping

from lowrank.core.metric import Metric
from lowrank.core.registries import Registry, entries_in
from lowrank.tasks.task import Task
from lowrank.tasks.user_metric import UserMetric

#: Task of a network for which params.yaml names none.
DEFAULT_TASK = "classification"

TASKS: Registry[Task] = Registry(
    "task",
    Task,  # type: ignore[type-abstract]
    group="lowrank.tasks",
    built_in=lambda: entries_in("lowrank.tasks."),
)


def get_task(name: str) -> Task:
    """Return the task with this name, or the metric of a user that a JSON document describes.

    Raises UserError for an unknown name.
    """
    return UserMetric.from_json(name) if name.startswith("{") else TASKS.get(name)


def metrics_of(models: Iterable[str], tasks: Mapping[str, str]) -> dict[str, Metric]:
    """Return the main metric of each model, given the name of its task.

    Models that `tasks` does not name have the default task.
    """
    return {model: get_task(tasks.get(model, DEFAULT_TASK)).metric for model in models}
