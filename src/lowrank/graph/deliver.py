"""Answers for workflow/rules/deliver.smk: exports, int8, measurements and results."""

from __future__ import annotations

import functools
import json

from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.graph.configuration import configuration_of
from lowrank.graph.names import (
    Wildcards,
    method_of,
    place_of_round,
)
from lowrank.graph.rules import Rules


class DeliverRules(Rules):
    """Inputs and settings of the rules that export, quantize, measure and summarize."""

    def export(self, wildcards: Wildcards) -> str:
        """Return the report on the export of a variant."""
        return f"{self.graph.folder(wildcards)}/export.json"

    def model(self, wildcards: Wildcards) -> str:
        """Return the exported network of a variant."""
        return f"{self.graph.folder(wildcards)}/model.onnx"

    def plans(self, wildcards: Wildcards) -> list[str]:
        """Return the plan of each round; without rounds, the empty plan that DVC expects."""
        folder = self.graph.folder(wildcards)
        numbers = self.graph.round_numbers(wildcards) or [1]
        return [f"{folder}/{place_of_round(number)}/ranks.json" for number in numbers]

    def round_metrics(self, wildcards: Wildcards) -> list[str]:
        """Return the accuracy of each round."""
        return self._round_files(wildcards, "metrics")

    def round_curves(self, wildcards: Wildcards) -> list[str]:
        """Return the training curve of each round."""
        return self._round_files(wildcards, "curve")

    def round_timings(self, wildcards: Wildcards) -> list[str]:
        """Return the steps and seconds of each round."""
        return self._round_files(wildcards, "timing")

    def _round_files(self, wildcards: Wildcards, name: str) -> list[str]:
        folder = self.graph.folder(wildcards)
        return [
            f"{folder}/rounds/{number}/{name}.json"
            for number in self.graph.round_numbers(wildcards)
        ]

    def quantized(self, wildcards: Wildcards) -> list[str]:
        """Return the folder of a variant in int8, if its method requests it; else none."""
        if not self.graph.quantize(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/int8"]

    def descriptions(self, wildcards: Wildcards) -> list[str]:
        """Return the processor descriptions of the devices of the matrix, the main device first."""
        return [f"build/devices/{device}.json" for device in self.params.matrix.devices]

    def connections_json(self, wildcards: Wildcards) -> str:
        """Return the connections of the devices on which int8 files are timed, as JSON.

        The settings of measurements are left out, because a new number of runs is no reason to
        quantize again.
        """
        timed = self.params.matrix.devices if self.params.quantize.by_time else ()
        return json.dumps(
            {name: json.loads(self.params.benchmark[name].connection_json()) for name in timed}
        )

    def device_signature(self, wildcards: Wildcards) -> str:
        """Return the processor and runtime that a description depends on; '' if not known here."""
        kind = DEVICE_KINDS.get(self.params.benchmark[wildcards.device].kind)
        return here_signature() if kind.measures_here else ""

    def ready_int8(self, wildcards: Wildcards) -> list[str]:
        """Return the original's folder in int8, for a method that does not change the original."""
        if not self.graph.quantize(wildcards) or self.graph.rounds(
            wildcards.model, method_of(wildcards)
        ):
            return []
        return [f"build/{wildcards.model}/original/int8"]

    def benchmarks(self, wildcards: Wildcards) -> list[str]:
        """Return the measurements on all devices."""
        folder = f"{self.graph.folder(wildcards)}/benchmark"
        return [f"{folder}/{device}.json" for device in self.params.matrix.devices]

    def described_json(self, wildcards: Wildcards) -> str:
        """Return the facts of a variant's model card that are not measured, as JSON."""
        name = f"{wildcards.model}_{method_of(wildcards)}"
        dataset = self.params.checkpoint[wildcards.model].dataset
        takes_arrays = self.params.dataset[dataset].has_arrays
        return json.dumps(
            {
                "name": name,
                "data": dataset,
                **({"takes_arrays": True} if takes_arrays else {}),
                "method": self.graph.report.stated_settings(wildcards),
                "configuration": configuration_of(
                    self.graph.document, self.params, wildcards.model, method_of(wildcards)
                ),
            }
        )


@functools.cache
def here_signature() -> str:
    """Return the processor and runtime of this machine, on which int8 files and latency depend."""
    from importlib.metadata import PackageNotFoundError, version

    from lowrank.devices.processor import Processor

    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = "of another package"  # For example onnxruntime-gpu.
    return f"{Processor.here().signature}; onnxruntime {runtime}"
