"""What workflow/rules/search.smk asks: trials for a target of accuracy."""

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
        """What the trials before `{number}` of a search lost."""
        folder = f"{self.graph.folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in range(1, int(wildcards.number))]

    def all_trials(self, wildcards: Wildcards) -> list[str]:
        """What every trial of a search lost."""
        folder = f"{self.graph.folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in self.graph.trial_numbers(wildcards)]

    def trial_plans(self, wildcards: Wildcards) -> list[str]:
        """The plan of each trial."""
        return self._of_trials(wildcards, "first/ranks.json")

    def trial_states(self, wildcards: Wildcards) -> list[str]:
        """The network of each trial."""
        return self._of_trials(wildcards, "rounds/1/model.safetensors")

    def trial_metrics(self, wildcards: Wildcards) -> list[str]:
        """The accuracy of each trial's network."""
        return self._of_trials(wildcards, "rounds/1/metrics.json")

    def trial_curves(self, wildcards: Wildcards) -> list[str]:
        """The training curve of each trial."""
        return self._of_trials(wildcards, "rounds/1/curve.json")

    def trial_timings(self, wildcards: Wildcards) -> list[str]:
        """Steps and seconds of each trial."""
        return self._of_trials(wildcards, "rounds/1/timing.json")

    def _of_trials(self, wildcards: Wildcards, name: str) -> list[str]:
        return [
            f"build/{wildcards.model}/{trial_name(wildcards.method, number)}/{name}"
            for number in self.graph.trial_numbers(wildcards)
        ]

    def delivered(self, wildcards: Wildcards) -> str:
        """The ONNX file of trial `{number}` that would be delivered: in int8 where asked for."""
        folder = f"build/{wildcards.model}/{trial_name(wildcards.method, int(wildcards.number))}"
        return f"{folder}/int8" if self.graph.quantize(wildcards) else f"{folder}/model.onnx"

    def search(self, wildcards: Wildcards) -> list[str]:
        """Which trial a search took; none for other methods."""
        if wildcards.method not in self.params.searching:
            return []
        return [f"{self.graph.folder(wildcards)}/search.json"]

    def control_found(self, wildcards: Wildcards) -> list[str]:
        """What the original loses in int8, for a search that delivers int8; else none."""
        if not self.graph.quantize(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/search/control_found.json"]
