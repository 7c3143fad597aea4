"""Answers for workflow/rules/deliver.smk: exports, int8, measurements and results."""

from __future__ import annotations

import functools
import json

from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.devices import main_settings
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
        device = self.params.benchmark[wildcards.device]
        is_here = DEVICE_KINDS.get(device.kind).measures_here
        return here_signature(device.main_runtime) if is_here else ""

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
                **self._fixed_batch(),
                "method": self.graph.report.stated_settings(wildcards),
                "configuration": configuration_of(
                    self.graph.document, self.params, wildcards.model, method_of(wildcards)
                ),
            }
        )

    def _fixed_batch(self) -> dict[str, int]:
        """Return the batch size of the twins with a fixed batch axis; empty without twins."""
        if self.params.export_onnx.batch == "open":
            return {}
        main_device = self.params.benchmark[self.params.matrix.devices[0]]
        return {"fixed_batch": main_settings(main_device.model_dump(mode="json"))["batch_size"]}


@functools.cache
def here_signature(runtime: str) -> str:
    """Return the processor of this machine and the version of a runtime.

    int8 files and latency depend on them.
    """
    from importlib.metadata import PackageNotFoundError, version

    from lowrank.devices.processor import Processor

    try:
        runtime_version = version(runtime)
    except PackageNotFoundError:
        runtime_version = "of another package"  # For example onnxruntime-gpu.
    return f"{Processor.here().signature}; {runtime} {runtime_version}"
