"""Answers for workflow/rules/search.smk: the trials for a target of `accuracy_drop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.config.params import trial_name
from lowrank.graph.names import (
    Wildcards,
)

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class SearchRules:
    """Inputs and settings of the rules that search for the cheapest network."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params

    def earlier_trials(self, wildcards: Wildcards) -> list[str]:
        """Return the measured losses of the trials of a search before `{number}`."""
        folder = f"{self.graph.folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in range(1, int(wildcards.number))]

    def all_trials(self, wildcards: Wildcards) -> list[str]:
        """Return the measured losses of all trials of a search."""
        folder = f"{self.graph.folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in self.graph.trial_numbers(wildcards)]

    def trial_plans(self, wildcards: Wildcards) -> list[str]:
        """Return the plan of each trial."""
        return self._trial_files(wildcards, "first/ranks.json")

    def trial_states(self, wildcards: Wildcards) -> list[str]:
        """Return the network of each trial."""
        return self._trial_files(wildcards, "rounds/1/model.safetensors")

    def trial_metrics(self, wildcards: Wildcards) -> list[str]:
        """Return the accuracy of each trial's network."""
        return self._trial_files(wildcards, "rounds/1/metrics.json")

    def trial_curves(self, wildcards: Wildcards) -> list[str]:
        """Return the training curve of each trial."""
        return self._trial_files(wildcards, "rounds/1/curve.json")

    def trial_timings(self, wildcards: Wildcards) -> list[str]:
        """Return the steps and seconds of each trial."""
        return self._trial_files(wildcards, "rounds/1/timing.json")

    def _trial_files(self, wildcards: Wildcards, name: str) -> list[str]:
        return [
            f"build/{wildcards.model}/{trial_name(wildcards.method, number)}/{name}"
            for number in self.graph.trial_numbers(wildcards)
        ]

    def delivered(self, wildcards: Wildcards) -> str:
        """Return the network that trial `{number}` would deliver, in int8 if requested."""
        folder = f"build/{wildcards.model}/{trial_name(wildcards.method, int(wildcards.number))}"
        return f"{folder}/int8" if self.graph.quantize(wildcards) else f"{folder}/model.onnx"

    def search(self, wildcards: Wildcards) -> list[str]:
        """Return the report that names the chosen trial of a search; none for other methods."""
        if wildcards.method not in self.params.searching:
            return []
        return [f"{self.graph.folder(wildcards)}/search.json"]

    def control_found(self, wildcards: Wildcards) -> list[str]:
        """Return the measured loss of the original in int8; none if the search delivers float."""
        if not self.graph.quantize(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/search/control_found.json"]
