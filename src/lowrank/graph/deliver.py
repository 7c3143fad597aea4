"""What workflow/rules/deliver.smk asks: exports, int8, measurements, results."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from lowrank.graph.configuration import configuration_of
from lowrank.graph.names import (
    Wildcards,
    place_of_round,
)

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class DeliverRules:
    """Inputs and settings of the rules that export, quantize, measure and summarize."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params

    def plans(self, wildcards: Wildcards) -> list[str]:
        """The plan of every round; an empty one, which DVC expects, where there is no round."""
        folder = self.graph.folder(wildcards)
        numbers = self.graph.round_numbers(wildcards) or [1]
        return [f"{folder}/{place_of_round(number)}/ranks.json" for number in numbers]

    def round_metrics(self, wildcards: Wildcards) -> list[str]:
        """The accuracy of every round."""
        return self._of_rounds(wildcards, "metrics")

    def round_curves(self, wildcards: Wildcards) -> list[str]:
        """The training curve of every round."""
        return self._of_rounds(wildcards, "curve")

    def round_timings(self, wildcards: Wildcards) -> list[str]:
        """Steps and seconds of every round."""
        return self._of_rounds(wildcards, "timing")

    def _of_rounds(self, wildcards: Wildcards, name: str) -> list[str]:
        folder = self.graph.folder(wildcards)
        return [
            f"{folder}/rounds/{number}/{name}.json"
            for number in self.graph.round_numbers(wildcards)
        ]

    def quantized(self, wildcards: Wildcards) -> list[str]:
        """The folder of a variant in int8, where its method asks for one; else none."""
        if not self.graph.quantize(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/int8"]

    def descriptions(self, wildcards: Wildcards) -> list[str]:
        """What the processor of each device of the matrix can do; the main device first."""
        return [f"build/devices/{device}.json" for device in self.params.matrix.devices]

    def connections_json(self, wildcards: Wildcards) -> str:
        """How the devices of the matrix are reached, where int8 files are timed there; else none.

        Without how they measure: another number of runs is no reason to quantize again.
        """
        timed = self.params.matrix.devices if self.params.quantize.by_time else ()
        return json.dumps(
            {name: json.loads(self.params.benchmark[name].connection_json()) for name in timed}
        )

    def device_signature(self, wildcards: Wildcards) -> str:
        """What a description depends on: the processor and runtime of a device that is this one."""
        if self.params.benchmark[wildcards.device].kind != "local":
            return ""
        return here_signature()

    def ready_int8(self, wildcards: Wildcards) -> list[str]:
        """The original's folder in int8, for a method that leaves the original as it is."""
        if not self.graph.quantize(wildcards) or self.graph.rounds(
            wildcards.model, wildcards.method
        ):
            return []
        return [f"build/{wildcards.model}/original/int8"]

    def benchmarks(self, wildcards: Wildcards) -> list[str]:
        """The measurements on every device."""
        folder = f"{self.graph.folder(wildcards)}/benchmark"
        return [f"{folder}/{device}.json" for device in self.params.matrix.devices]

    def described_json(self, wildcards: Wildcards) -> str:
        """What a variant's card states beside what was measured, as JSON."""
        name = f"{wildcards.model}_{wildcards.method}"
        return json.dumps(
            {
                "name": name,
                "data": self.params.checkpoint[wildcards.model].dataset,
                "method": self.graph.report.stated_settings(wildcards),
                "configuration": configuration_of(
                    self.graph.document, self.params, wildcards.model, wildcards.method
                ),
            }
        )


@functools.cache
def here_signature() -> str:
    """What int8 files and latencies of this machine depend on: its processor and its runtime."""
    from importlib.metadata import PackageNotFoundError, version

    from lowrank.devices.processor import Processor

    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = "of another package"  # onnxruntime-gpu, say
    return f"{Processor.here().signature}; onnxruntime {runtime}"
