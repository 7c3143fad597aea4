"""Forms in which the latency of an ONNX file is measured: unchanged, or in 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from lowrank.config.quantize import QuantizeSettings
from lowrank.devices.processor import IntegerTypes, Processor
from lowrank.files import read_json
from lowrank.onnx_files.int8 import Quantizer, noise_for, types_for
from lowrank.onnx_networks.int8_preparation import PER_CHANNEL_OPSET, write_prepared
from lowrank.onnx_networks.model_file import opset_of


class Form:
    """The form in which models are measured: unchanged or quantized. Outputs do not matter."""

    def __init__(self, quantized: QuantizeSettings | None, types: IntegerTypes | None) -> None:
        self._quantized, self._types = quantized, types

    @classmethod
    def of_settings(cls, quantize: str, settings: QuantizeSettings, processor: Path) -> Form:
        """Create the form from `methods.<method>.quantize`, empty for float, and `quantize`.

        `processor` is the description of the device on which the models run.
        """
        if not quantize:
            return cls(None, None)
        return cls(settings, types_for(Processor.from_json(read_json(processor)), settings))

    @classmethod
    def here(cls, *, int8: bool) -> Form:
        """Create the form for this machine."""
        if not int8:
            return cls(None, None)
        settings = QuantizeSettings()
        return cls(settings, types_for(Processor.here(), settings))

    @property
    def is_quantized(self) -> bool:
        """Whether models are measured in 8 bits."""
        return self._quantized is not None

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
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            if opset_of(onnx.load(model, load_external_data=False)) < PER_CHANNEL_OPSET:
                model = write_prepared(model, Path(folder) / "newer.onnx")
            minmax = self._quantized.model_copy(update={"calibration": "minmax"})
            Quantizer(model, [noise_for(model)], minmax, Path(folder)).write(path, self._types)
            yield path
