"""Measure what the compression of an ONNX file cost and gained, and write it in int8."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from lowrank.compression.graph_network import GraphNetwork
from lowrank.config.device_kinds import create_device
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.metric import Metric
from lowrank.core.plans import Expected
from lowrank.devices import Device, DeviceError
from lowrank.devices.processor import Processor
from lowrank.errors import UserError
from lowrank.onnx_files.int8 import Quantizer, types_for
from lowrank.onnx_networks.int8_preparation import write_prepared
from lowrank.onnx_networks.model_run import Feed


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

    def measure(self, label: str, path: Path) -> MeasuredFile:
        """Compare a file with the original: outputs on the samples, and latency here."""
        changed = GraphNetwork(
            onnx.load(path), (), self.original.shapes, str(path), self.original.batches
        )
        return MeasuredFile(
            label, path, changed.expected_from(self.original), self._speedup(changed)
        )

    def _speedup(self, changed: GraphNetwork) -> tuple[float, float, float] | str:
        device: Device = create_device("local", {"threads": self.threads})
        before, after = self.folder / "original.onnx", self.folder / "changed.onnx"
        try:
            self.original.write_fixed(before)
            changed.write_fixed(after)
            measured = device.measure(before, after, {})
        except (DeviceError, UserError) as error:
            return str(error)
        return measured["speedup"], measured["speedup_low"], measured["speedup_high"]


def write_int8(model: onnx.ModelProto, batches: Sequence[Feed], path: Path, label: str) -> None:
    """Write a network in int8, for the processor of this machine.

    All layers are quantized, with ranges of activations from the batches.

    Raises UserError if ONNX Runtime cannot quantize the network.
    """
    settings = QuantizeSettings()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        intermediate = Path(folder) / "intermediate"
        intermediate.mkdir()
        try:
            write_prepared(model, prepared, label)
            quantizer = Quantizer(prepared, batches, settings, intermediate)
            quantizer.write(path, types_for(Processor.here(), settings))
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's tools raise nearly any type.
            raise UserError(
                f"{label}: ONNX Runtime cannot quantize this network to int8 "
                f"({type(error).__name__}: {error}). Compress it without int8."
            ) from error
