"""Measure what the compression of one network cost and gained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from lowrank.compression.graph_network import GraphNetwork
from lowrank.config.device_kinds import create_device
from lowrank.core.metric import Metric
from lowrank.core.plans import Expected
from lowrank.devices import Device, DeviceError

# Settings of the measurement of latency. A few seconds are enough for one line to the user.
_LATENCY = {"sittings": 3, "warmup_seconds": 0.2, "seconds": 1.5, "energy_seconds": 0}

# Share of the distance from chance that int8 may lose beside the loss of the network in float.
_LARGEST_INT8_DROP = 0.05


@dataclass(frozen=True)
class MeasuredFile:
    """A file, and how it compares with the original in float.

    `change` is None if it was not measured. `speedup` is the ratio of latencies with its interval,
    (ratio, low, high), or the reason why it was not measured.
    """

    label: str
    path: Path
    change: Expected | None
    speedup: tuple[float, float, float] | str

    def sentence(self) -> str:
        """Return a line for the user."""
        parts = [f"{self.path.stat().st_size / 1e6:.2f} MB"]
        if self.change is not None:
            metric: Metric = self.change.metric
            parts.append(f"{metric.noun} {metric.text(self.change.after)}")
        if isinstance(self.speedup, str):
            parts.append(f"latency not measured: {self.speedup}")
        else:
            ratio, low, high = self.speedup
            parts.append(f"{ratio:.2f}x the speed of the original ({low:.2f} to {high:.2f})")
        return f"{self.label}: {', '.join(parts)}"


@dataclass(frozen=True)
class FileMeasurements:
    """Measurements of files that compute the same as an original ONNX file.

    Parameters
    ----------
    original
        The original network, with samples.
    threads
        Number of threads of ONNX Runtime for the latency.
    folder
        Empty folder for intermediate files.
    """

    original: GraphNetwork
    threads: int
    folder: Path

    def measure(self, label: str, path: Path, change: Expected | None = None) -> MeasuredFile:
        """Compare a file with the original: outputs on the samples, and latency here.

        `change` is the change of the outputs if it is known.
        """
        changed = GraphNetwork(
            onnx.load(path), (), self.original.shapes, str(path), self.original.batches
        )
        change = change or changed.expected_from(self.original)
        return MeasuredFile(label, path, change, self._speedup(changed))

    def _speedup(self, changed: GraphNetwork) -> tuple[float, float, float] | str:
        device: Device = create_device("local", {"threads": self.threads})
        before, after = self.folder / "original.onnx", self.folder / "changed.onnx"
        try:
            self.original.write_fixed(before)
            changed.write_fixed(after)
            measured = device.measure(before, after, _LATENCY)
        except DeviceError as error:
            return str(error)
        return measured["speedup"], measured["speedup_low"], measured["speedup_high"]


def warnings_about(in_int8: MeasuredFile, in_float: MeasuredFile) -> list[str]:
    """Return why the network in float is the better choice than the one in int8, if it is.

    It is faster if the intervals of the speedups do not overlap.
    """
    warnings = []
    if not isinstance(in_int8.speedup, str) and not isinstance(in_float.speedup, str):
        (ratio, _, high), (other, low, _) = in_int8.speedup, in_float.speedup
        if high < low:
            warnings.append(
                f"int8 is slower than float on this machine ({ratio:.2f}x and {other:.2f}x the "
                "speed of the original)"
            )
    if in_int8.change is not None and in_float.change is not None:
        metric: Metric = in_int8.change.metric
        if in_int8.change.drop - in_float.change.drop > _LARGEST_INT8_DROP:
            warnings.append(
                f"int8 changes the outputs much more than float ({metric.noun} "
                f"{metric.text(in_int8.change.after)} and {metric.text(in_float.change.after)})"
            )
    return [f"warning: {reason}: use {in_float.path.name}" for reason in warnings]
