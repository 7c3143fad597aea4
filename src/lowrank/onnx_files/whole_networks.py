"""Latency of complete compressed networks, to correct the sum of the latencies of their layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import LayerTable, PlainLayer
from lowrank.devices import Device
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.forms import Form
from lowrank.ranks.latency_model import Latencies
from lowrank.surgery.states import read_state, replace_layer


@dataclass(frozen=True)
class WholeNetworks:
    """Compressed versions of one network, measured in one piece on a device.

    Parameters
    ----------
    original, source, state
        The original network as ONNX, as params.yaml describes it, and as safetensors.
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
    source: NetworkSource
    state: Path
    table: LayerTable
    latencies: Latencies
    form: Form
    device: Device
    settings: Mapping[str, Any]
    say: Callable[[str], object]

    def milliseconds(self, sequences: Mapping[str, Sequence[PlainLayer]]) -> tuple[float, float]:
        """Return the latency of a compressed network in ms: by its layers, and in one piece.

        `sequences` are the plain layers that replace a layer, by its name. Their weights do not
        matter. Raises DeviceError if the device cannot measure the network.
        """
        settings = {**self.settings, "energy_seconds": 0}
        with tempfile.TemporaryDirectory() as folder:
            compressed = self._export(sequences, Path(folder) / "compressed.onnx")
            with self.form.of(compressed) as model:
                speedup = self.device.measure(self.original, model, settings)["speedup"]
        by_layers = self.latencies.rest_ms + sum(
            self.latencies.milliseconds(sequences.get(layer.name, [layer]), layer.input_map)
            for layer in self.table.layers
            if layer.kind != "transposed_conv"
        )
        in_one_piece = self.latencies.original_ms / speedup
        self.say(
            f"compressed: {by_layers:.3f} ms by its layers, {in_one_piece:.3f} ms in one piece"
        )
        return by_layers, in_one_piece

    def _export(self, sequences: Mapping[str, Sequence[PlainLayer]], path: Path) -> Path:
        """Write the network as ONNX, with layers replaced by sequences with random weights."""
        compressed = read_state(self.state, self.source)
        for name, sequence in sequences.items():
            replace_layer(compressed.network, name, sequence)
        export_onnx(compressed.network, compressed.spec, path)
        return path
