"""Quantize weights and activations to 8 bits with ONNX Runtime's static quantization."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from lowrank.config.quantize import QuantizeSettings
from lowrank.core.tensors import length
from lowrank.devices.processor import IntegerTypes, Processor, integer_types
from lowrank.errors import UserError
from lowrank.files import written_whole
from lowrank.onnx_files.bias_correction import BiasCorrection
from lowrank.onnx_files.float_nodes import float_nodes
from lowrank.onnx_files.mixed_channels import mix_channels
from lowrank.onnx_networks.int8_preparation import name_nodes
from lowrank.onnx_networks.model_file import fixed_batch, inputs_of
from lowrank.onnx_networks.model_run import zeros

# Types of nodes with weights. The nodes between them (pooling, sums, concatenation) follow.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Input elements per calibration run: eight images of CIFAR-10, or one image of ImageNet.
_PIECE_ELEMENTS = 8 * 3 * 32 * 32

# Bound of a range from which on it comes from a mask.
_BOUND = 1e30

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


class Quantizer:
    """Writer of int8 versions of one ONNX file; activation ranges are measured only once.

    Weights are quantized symmetrically per output channel, activations per tensor. The files use
    the QDQ format: pairs of QuantizeLinear and DequantizeLinear nodes, which a runtime with int8
    kernels fuses with the nodes between them.

    Parameters
    ----------
    model
        ONNX file to quantize.
    batches
        Inputs by name: a few hundred training samples as the network expects them, such as images
        (N, C, H, W) in float32. Batches are run in small pieces, because ONNX Runtime keeps all
        feature maps of a run in memory.
    settings
        Calibration method, and the integer types of files that are written without `types`.
    folder
        Empty folder for intermediate files.
    """

    def __init__(
        self,
        model: Path,
        batches: Sequence[Mapping[str, np.ndarray]],
        settings: QuantizeSettings,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._types = types_for(Processor.here(), settings)
        self._model, self._ranges = folder / "prepared.onnx", folder / "ranges.json"
        # The export already folds constants. Only the shapes are missing.
        quant_pre_process(model, self._model, skip_optimization=True, skip_symbolic_shape=True)
        prepared = onnx.load(self._model)
        graph = prepared.graph
        name_nodes(graph)
        constants = {initializer.name for initializer in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        self._unbounded: tuple[str, ...] | None = None
        self._batches = Pieces(batches, fixed_batch(inputs))
        mix_channels(prepared, self._batches, str(model))
        self._correction = BiasCorrection.prepared(prepared, self._batches, str(model))
        onnx.save(prepared, self._model)
        #: Names of the nodes with weights, in the order of the graph.
        self.nodes = tuple(
            node.name
            for node in graph.node
            if node.op_type in _WEIGHTED and constants.intersection(node.input)
        )
        self._in_float = tuple(float_nodes(graph, frozenset(self.nodes)))

    def write(
        self,
        path: Path,
        types: IntegerTypes | None = None,
        *,
        only: Sequence[str] | None = None,
        but: Sequence[str] = (),
    ) -> None:
        """Write the network with all nodes in int8, or `only` some, and without the nodes in `but`.

        The default `types` are those for the processor of this machine. If no node with weights is
        left, the file is the network in float.
        """
        types = types or self._types
        with written_whole(path) as partial:
            if not set(self.nodes) - set(but):
                # Otherwise the nodes between them would be quantized without any benefit.
                shutil.copyfile(self._model, partial)
                return
            try:
                self._quantize(partial, types, only, [*but, *(self._unbounded or ())])
            except ValueError as error:
                if self._settings.calibration == "minmax":
                    raise
                raise UserError(
                    f"quantize.calibration: '{self._settings.calibration}' divides the values of "
                    f"each tensor into a histogram, which fails for this network ({error}). It may "
                    "mask values with minus infinity. Set it to minmax."
                ) from error
            if self._unbounded is None:
                self._unbounded = self._without_bounds()
                if self._unbounded:
                    self._quantize(partial, types, only, [*but, *self._unbounded])

    def _quantize(
        self, path: Path, types: IntegerTypes, only: Sequence[str] | None, but: Sequence[str]
    ) -> None:
        # The calibration prints a line for each piece.
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                self._model,
                path,
                _Reader(self._batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=types.reduce_range,
                activation_type=_TYPES[types.activations],
                weight_type=QuantType.QInt8,
                nodes_to_quantize=None if only is None else list(only),
                nodes_to_exclude=[*but, *self._in_float],
                calibrate_method=_METHODS[self._settings.calibration],
                # Process piece by piece: histograms would keep all maps of all pieces.
                extra_options={
                    "CalibStridedMinMax": 1,
                    "CalibPercentile": self._settings.percentile,
                },
                calibration_cache_path=self._ranges,
            )
        quantized = onnx.load(path)
        if self._correction.apply(quantized):
            onnx.save(quantized, path)

    def _without_bounds(self) -> tuple[str, ...]:
        """Return the nodes at tensors without a usable range, which must stay in float.

        Attention masks scores with minus infinity, or with the smallest number. No other score
        would be left in 256 steps over such a range.
        """
        if not self._ranges.exists():
            return ()
        ranges = json.loads(self._ranges.read_text())["data"]
        tensors = {name for name, of_tensor in ranges.items() if not _has_bounds(of_tensor)}
        nodes = onnx.load(self._model, load_external_data=False).graph.node
        return tuple(
            node.name for node in nodes if not tensors.isdisjoint([*node.input, *node.output])
        )


def _has_bounds(of_tensor: Mapping[str, Any]) -> bool:
    """Return whether a range, as ONNX Runtime stores it, can be divided into steps."""
    bounds = (of_tensor[name] for name in ("lowest", "highest"))
    values = (bound["data"] if isinstance(bound, dict) else bound for bound in bounds)
    # Comparisons with NaN are false.
    return all(bool((np.abs(value) < _BOUND).all()) for value in values)


class Pieces(Sequence[Mapping[str, np.ndarray]]):
    """Batches split into small pieces, each created when it is read.

    Calibration keeps all feature maps of a run in memory until their minimum and maximum are
    known. For a ResNet-56 and 250 images, these are gigabytes.

    Parameters
    ----------
    batches
        The batches.
    size
        Number of images of a piece, for a network that takes no other. 0: as fit in memory.
    """

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]], size: int = 0) -> None:
        self._batches, self._size = batches, size
        self._last_batch: tuple[int, Mapping[str, np.ndarray]] | None = None
        self._slices = [
            (number, start, start + step)
            for number in range(len(batches))
            for count, step in [self._sizes(number)]
            for start in range(0, count, step)
        ]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: Any) -> Any:
        number, start, end = self._slices[index]
        return {name: inputs[start:end] for name, inputs in self._batch(number).items()}

    def _batch(self, number: int) -> Mapping[str, np.ndarray]:
        if self._last_batch is None or self._last_batch[0] != number:
            self._last_batch = (number, self._batches[number])
        return self._last_batch[1]

    def _sizes(self, number: int) -> tuple[int, int]:
        """Return the number of images of a batch and of each of its pieces."""
        batch = self._batch(number)
        elements = sum(inputs[:1].size for inputs in batch.values())
        return length(batch), self._size or max(1, _PIECE_ELEMENTS // max(elements, 1))


class _Reader(CalibrationDataReader):
    """Reader that returns batches one by one to `quantize_static`."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Set the range of batches to return next."""
        self._numbers = iter(range(start_index, end_index))

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next batch, or None after the last one."""
        number = next(self._numbers, None)
        return None if number is None else self._batches[number]


def types_for(processor: Processor, settings: QuantizeSettings) -> IntegerTypes:
    """Return the integer types of an int8 network for a processor; settings take precedence."""
    return integer_types(processor, settings.activations, settings.reduce_range)


def noise_for(model: Path) -> dict[str, np.ndarray]:
    """Return a batch for an ONNX file of which only the latency is measured.

    It is normal noise, and zeros for inputs of whole numbers.
    """
    network = onnx.load(model, load_external_data=False)
    shapes = {
        entry.name: [size.dim_value or 1 for size in entry.type.tensor_type.shape.dim]
        for entry in inputs_of(network)
    }
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in zeros(network, shapes).items()
    }
