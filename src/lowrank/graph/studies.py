"""Answers for workflow/rules/studies.smk: the results that a study compares."""

from __future__ import annotations

from lowrank.graph.names import (
    Wildcards,
)
from lowrank.graph.rules import Rules


class StudyRules(Rules):
    """Inputs of the rules that compare methods."""

    def study_results(self, wildcards: Wildcards) -> list[str]:
        """Return the results of all variants of a study, for each of its networks."""
        study = self.params.studies[wildcards.study]
        return [
            f"results/{model}_{method}.json"
            for model in study.models
            for method in study.methods(wildcards.study)
        ]
