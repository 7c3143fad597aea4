"""Latency of complete compressed networks, to correct the sum of the latencies of their layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import LayerTable, PlainLayer
from lowrank.devices import Device
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.measured_form import measured_form
from lowrank.ranks.latency_model import Latencies
from lowrank.surgery.states import read_state, replace_layer

Sequences = Mapping[str, Sequence[PlainLayer]]
# Writes the network to a path, with layers replaced by sequences with any weights, and provides the
# file as it is measured.
Export = Callable[[Sequences, Path], AbstractContextManager[Path]]


@dataclass(frozen=True)
class WholeNetworks:
    """Compressed versions of one network, measured in one piece on a device.

    Parameters
    ----------
    original
        The original network as ONNX; see `measured_form`.
    export
        Function that writes compressed versions.
    table
        The layer table of the network.
    latencies
        The latencies of layers on the device.
    form
        The form of the compressed networks.
    device, settings
        The device and its settings. Networks are measured in alternating turns with the original.
    say
        Called with a message about each measurement.
    """

    original: Path
    export: Export
    table: LayerTable
    latencies: Latencies
    form: Form
    device: Device
    settings: Mapping[str, Any]
    say: Callable[[str], object]

    def milliseconds(self, sequences: Sequences) -> tuple[float, float]:
        """Return the latency of a compressed network in ms: by its layers, and in one piece.

        `sequences` are the plain layers that replace a layer, by its name. Their weights do not
        matter. Raises DeviceError if the device cannot measure the network.
        """
        settings = {**self.settings, "energy_seconds": 0}
        with (
            tempfile.TemporaryDirectory() as folder,
            self.export(sequences, Path(folder) / "compressed.onnx") as compressed,
            self.form.of(compressed) as model,
        ):
            speedup = self.device.measure(self.original, model, settings)["speedup"]
        written = self.table.sequences_with(sequences)
        by_layers = self.latencies.rest_ms + sum(
            self.latencies.milliseconds(written[layer.name], layer.input_map)
            for layer in self.table.layers
            if layer.kind != "transposed_conv"
        )
        in_one_piece = self.latencies.original_ms / speedup
        self.say(
            f"compressed: {by_layers:.3f} ms by its layers, {in_one_piece:.3f} ms in one piece"
        )
        return by_layers, in_one_piece


def export_of_state(state: Path, source: NetworkSource, batch: int | None = None) -> Export:
    """Return a function that writes compressed versions of a stored network, with random weights.

    Parameters
    ----------
    state
        The network, safetensors.
    source
        How it is built.
    batch
        Number of samples of a fixed batch axis; None leaves the axis open.
    """

    def export(sequences: Sequences, path: Path) -> AbstractContextManager[Path]:
        compressed = read_state(state, source)
        for name, sequence in sequences.items():
            replace_layer(compressed.network, name, sequence)
        export_onnx(compressed.network, compressed.spec, path)
        return measured_form(path, compressed.spec, source, batch=batch)

    return export
