"""Answers for workflow/rules/search.smk: the trials for a target of `accuracy_drop`."""

from __future__ import annotations

from collections.abc import Iterable

from lowrank.graph.names import (
    FILES_OF_ROUND,
    Wildcards,
    folder_of_trial,
    method_of,
)
from lowrank.graph.rules import Rules
from lowrank.ranks.budget_settings import BudgetSettings


class SearchRules(Rules):
    """Inputs and settings of the rules that search for the cheapest network."""

    def earlier_trials(self, wildcards: Wildcards) -> list[str]:
        """Return the measured losses of the trials of a search before `{number}`."""
        return self._of_trials(wildcards, range(1, int(wildcards.number)), "loss.json")

    def latencies(self, wildcards: Wildcards) -> list[str]:
        """Return the latencies of layers that give the range of costs of a search.

        Empty if the cost is no latency, or the range is a setting.
        """
        method = method_of(wildcards)
        settings = self.params.ranks_of(wildcards.model, method)
        if not isinstance(settings, BudgetSettings) or settings.search.between:
            return []
        folder = f"build/{wildcards.model}/{folder_of_trial(method, 1)}/latencies"
        return [f"{folder}/{device}.json" for device in settings.devices]

    def all_trials(self, wildcards: Wildcards) -> list[str]:
        """Return the measured losses of all trials of a search."""
        return self._of_trials(wildcards, self.graph.trial_numbers(wildcards), "loss.json")

    def plans(self, wildcards: Wildcards) -> list[str]:
        """Return the plan of each trial."""
        return self._of_trials(wildcards, self.graph.trial_numbers(wildcards), "first/ranks.json")

    def networks(self, wildcards: Wildcards) -> list[str]:
        """Return the files of each trial's round, those of the first trial first."""
        files = [f"rounds/1/{name}" for name in FILES_OF_ROUND]
        return self._of_trials(wildcards, self.graph.trial_numbers(wildcards), *files)

    @staticmethod
    def _of_trials(wildcards: Wildcards, numbers: Iterable[int], *files: str) -> list[str]:
        method = method_of(wildcards)
        return [
            f"build/{wildcards.model}/{folder_of_trial(method, number)}/{file}"
            for number in numbers
            for file in files
        ]

    def delivered(self, wildcards: Wildcards) -> str:
        """Return the network that trial `{number}` would deliver, in int8 if requested."""
        file = "int8" if self.graph.quantize(wildcards) else "model.onnx"
        return self._of_trials(wildcards, [int(wildcards.number)], file)[0]

    def search(self, wildcards: Wildcards) -> list[str]:
        """Return the report that names the chosen trial of a search; none for other methods."""
        if method_of(wildcards) not in self.params.searching:
            return []
        return [f"{self.graph.folder(wildcards)}/search/chosen.json"]

    def control_loss(self, wildcards: Wildcards) -> list[str]:
        """Return the measured loss of the original in int8; none if the search delivers float."""
        if not self.graph.quantize(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/search/control_loss.json"]
