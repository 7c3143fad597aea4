"""Answers for workflow/rules/report.smk: the comparison of all variants, and captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lowrank.files import sha256_of
from lowrank.graph.names import (
    RESULTS,
    Wildcards,
    method_of,
)
from lowrank.graph.rules import Rules


class ReportRules(Rules):
    """Inputs and settings of the rules that compare variants."""

    def stated(self, wildcards: Wildcards) -> str:
        """Return a variant's method with all settings that apply to its network, as YAML."""
        return yaml.safe_dump(self.stated_settings(wildcards), sort_keys=False, width=100)

    def stated_settings(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return a variant's method with all settings that apply to its network."""
        model, method = wildcards.model, method_of(wildcards)
        settings = self.params.methods[method]
        sections = {
            "factorize": settings.factorize,
            "ranks": self.params.ranks_of(model, method),
            "schedule": settings.schedule,
            "finetune": self.params.finetune_of(model, method),
        }
        return {
            "name": method,
            **{
                name: section.model_dump(mode="json", exclude_none=True, exclude_unset=True)
                for name, section in sections.items()
            },
            "quantize": settings.quantize,
        }

    def tasks_json(self, models: Iterable[str]) -> str:
        """Return the task of each of these models, as JSON."""
        return json.dumps({model: self.graph.task_of(model) for model in models})

    @property
    def overview_tasks(self) -> str:
        """Name of the task of each model of the overview, as JSON."""
        models = (variant.partition(":")[0] for variant in self.overview_variants.split())
        return self.tasks_json(sorted(set(models)))

    def devices_stated(self) -> str:
        """Return the settings of each device of the matrix, as YAML."""
        devices = {
            name: self.params.benchmark[name].model_dump(mode="json")
            for name in self.params.matrix.devices
        }
        return yaml.safe_dump(devices, sort_keys=False, width=100)

    @property
    def matrix_results(self) -> list[str]:
        """The results of the matrix."""
        return [f"results/{name}.json" for name in self.graph.variants()]

    @property
    def compared(self) -> dict[str, str]:
        """Results outside the matrix that the overview includes: digest by `model:method`.

        These are all existing results of known variants, except those of studies, which have their
        own pictures. None with storage: results that lie in this folder are those of other runs.
        """
        if self.graph.stored_at:
            return {}
        studied = {
            f"{model}_{method}"
            for name, study in self.params.studies.items()
            for model in study.models
            for method in study.methods(name)
        }
        matrix = self.graph.variants()
        digests = {}
        for path in sorted(Path(self.graph.prefix, RESULTS).glob("*.json")):
            variant = self.graph.known_variants.get(path.stem)
            if variant and path.stem not in matrix and path.stem not in studied:
                digests[":".join(variant)] = sha256_of(path)[:12]
        return digests

    @property
    def overview_variants(self) -> str:
        """`model:method` of each variant of the overview."""
        return " ".join([*map(":".join, self.graph.variants().values()), *self.compared])
