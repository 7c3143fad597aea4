"""What the steps that measure layers and networks for a target of milliseconds share."""

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
    """Models as they are, or quantised: what they answer does not matter."""

    def __init__(self, quantized: QuantizeSettings | None, types: IntegerTypes | None) -> None:
        self._quantized, self._types = quantized, types

    @classmethod
    def of_settings(cls, quantize: str, settings: QuantizeSettings, processor: Path) -> Form:
        """Read `methods.<method>.quantize`, empty for float, and the section `quantize`.

        `processor` is the description of the device that the models run on.
        """
        from lowrank.devices.processor import Processor
        from lowrank.files import read_json

        if not quantize:
            return cls(None, None)
        from lowrank.onnx_files.int8 import types_for

        return cls(settings, types_for(Processor.from_json(read_json(processor)), settings))

    @property
    def bytes_per_weight(self) -> int:
        """In memory."""
        return 4 if self._quantized is None else 1

    def __str__(self) -> str:
        if self._types is None:
            return "float"
        return f"{self._types.activations}, reduce_range {self._types.reduce_range}"

    @contextmanager
    def of(self, model: Path) -> Iterator[Path]:
        """The file of a model in that form, as long as the block lasts."""
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
    """What a compressed network takes: ms by its layers, and in one piece.

    Parameters
    ----------
    original, source, state
        The network, as ONNX, as params.yaml describes it, and as safetensors.
    table
        Its layer table.
    sequences
        What layers are replaced by, by their names; their weights do not matter.
    latencies
        What layers take on the device.
    form
        Of the compressed network.
    device, settings
        Where it is measured, turn about with the original, and how. Raises DeviceError.
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
    whole = latencies.original_ms / speedup
    say(f"compressed: {by_layers:.3f} ms by its layers, {whole:.3f} ms in one piece")
    return by_layers, whole


def _export(
    source: NetworkSource,
    state: Path,
    sequences: Mapping[str, Sequence[PlainLayer]],
    path: Path,
) -> Path:
    """Write the network with layers replaced by sequences of fresh weights as ONNX."""
    from lowrank.onnx_files.export import export_onnx
    from lowrank.surgery.states import read_state, replace_layer

    read = read_state(state, source)
    for name, sequence in sequences.items():
        replace_layer(read.network, name, sequence)
    export_onnx(read.network, read.spec, path)
    return path
