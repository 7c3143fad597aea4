"""Shared parts of the steps that measure layers and networks for a target of milliseconds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.steps.common import say

if TYPE_CHECKING:
    from lowrank.config.network_source import NetworkSource
    from lowrank.config.quantize import QuantizeSettings
    from lowrank.core.layers import LayerTable, PlainLayer
    from lowrank.devices import Device
    from lowrank.devices.processor import IntegerTypes
    from lowrank.ranks.latency_model import Latencies


class Form:
    """The form in which models are measured: unchanged or quantized. Outputs do not matter."""

    def __init__(self, quantized: QuantizeSettings | None, types: IntegerTypes | None) -> None:
        self._quantized, self._types = quantized, types

    @classmethod
    def of_settings(cls, quantize: str, settings: QuantizeSettings, processor: Path) -> Form:
        """Create the form from `methods.<method>.quantize`, empty for float, and `quantize`.

        `processor` is the description of the device on which the models run.
        """
        from lowrank.devices.processor import Processor
        from lowrank.files import read_json

        if not quantize:
            return cls(None, None)
        from lowrank.onnx_files.int8 import types_for

        return cls(settings, types_for(Processor.from_json(read_json(processor)), settings))

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of a weight in memory."""
        return 4 if self._quantized is None else 1

    def __str__(self) -> str:
        if self._types is None:
            return "float"
        return f"{self._types.activations}, reduce_range {self._types.reduce_range}"

    @contextmanager
    def of(self, model: Path) -> Iterator[Path]:
        """Provide the file of a model in this form inside the block."""
        if self._quantized is None:
            yield model
            return
        from lowrank.onnx_files.int8 import Quantizer, noise_for

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            minmax = self._quantized.model_copy(update={"calibration": "minmax"})
            Quantizer(model, [noise_for(model)], minmax, Path(folder)).write(path, self._types)
            yield path


def in_one_piece(
    original: Path,
    source: NetworkSource,
    state: Path,
    table: LayerTable,
    sequences: Mapping[str, Sequence[PlainLayer]],
    latencies: Latencies,
    form: Form,
    device: Device,
    settings: dict[str, Any],
) -> tuple[float, float]:
    """Return the latency of a compressed network in ms: by its layers, and measured in one piece.

    Parameters
    ----------
    original, source, state
        The original network as ONNX, as params.yaml describes it, and as safetensors.
    table
        The layer table of the network.
    sequences
        The plain layers that replace a layer, by its name. Their weights do not matter.
    latencies
        The latencies of layers on the device.
    form
        The form of the compressed network.
    device, settings
        The device and the settings of the measurement. The network is measured in alternating turns
        with the original.

    Returns
    -------
    tuple of float
        The sum over the layers, and the latency in one piece, in ms.

    Raises
    ------
    DeviceError
        If the device cannot measure the network.
    """
    settings = settings | {"energy_seconds": 0}
    with tempfile.TemporaryDirectory() as folder:
        small = _export(source, state, sequences, Path(folder) / "small.onnx")
        with form.of(small) as model:
            speedup = device.measure(original, model, settings)["speedup"]
    by_layers = latencies.rest_ms + sum(
        latencies.milliseconds(sequences.get(layer.name, [layer]), layer.input_map)
        for layer in table.layers
        if layer.kind != "transposed_conv"
    )
    in_one_piece_ms = latencies.original_ms / speedup
    say(f"compressed: {by_layers:.3f} ms by its layers, {in_one_piece_ms:.3f} ms in one piece")
    return by_layers, in_one_piece_ms


def _export(
    source: NetworkSource,
    state: Path,
    sequences: Mapping[str, Sequence[PlainLayer]],
    path: Path,
) -> Path:
    """Write the network as ONNX, with layers replaced by sequences with random weights."""
    from lowrank.onnx_files.export import export_onnx
    from lowrank.surgery.states import read_state, replace_layer

    compressed = read_state(state, source)
    for name, sequence in sequences.items():
        replace_layer(compressed.network, name, sequence)
    export_onnx(compressed.network, compressed.spec, path)
    return path
