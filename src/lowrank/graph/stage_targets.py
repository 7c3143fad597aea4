"""The files that Snakemake makes for a DVC stage whose outputs depend on the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class _Job(SimpleNamespace):
    """The wildcards of a job, as Snakemake passes them."""

    def keys(self) -> Iterable[str]:
        return vars(self).keys()


def targets_of(stage: str, model: str, method: str, graph: Graph) -> list[str]:
    """Return the files that Snakemake makes for the stage of a variant.

    dvc.yaml cannot name them, because layers, rounds and searches differ between methods. A stage
    that has nothing to make for this method requests the layer table, which is up to date.
    Snakemake then only makes the empty folders that DVC expects.

    Raises KeyError for a stage whose targets dvc.yaml names.
    """
    job: Any = _Job(model=model, method=method, at="first")
    searches = method in graph.params.searching
    targets: dict[str, Callable[[Any], list[str]]] = {
        "settle": graph.search.search,
        "decompose": lambda job: [] if searches else graph.compress.factors(job),
        "finetune": lambda job: [graph.last_state(job)] if graph.rounds(model, method) else [],
    }
    return targets[stage](job) or [graph.tables.table(job)]
