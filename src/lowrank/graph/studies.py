"""What workflow/rules/studies.smk asks: the results that a study compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.graph.names import (
    Wildcards,
)

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class StudyRules:
    """Inputs of the rules that compare methods."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params

    def study_results(self, wildcards: Wildcards) -> list[str]:
        """The results of every variant of a study, on each of its networks."""
        study = self.params.studies[wildcards.study]
        return [
            f"results/{model}_{method}.json"
            for model in study.models
            for method in study.methods(wildcards.study)
        ]
