"""An exported network in 8 bits, weights and activations: ONNX Runtime's static quantisation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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

from lowrank.devices.processor import IntegerTypes, Processor, integer_types
from lowrank.files import written_whole
from lowrank.params import QuantizeSettings

# Nodes with weights. What lies between them (pooling, sums, concatenation) follows them.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


class Quantizer:
    """Makes int8 networks of one ONNX file; the ranges of its activations are measured once.

    Weights are quantised by output channel and symmetrically, activations by tensor, and both
    stand in the file between pairs of QuantizeLinear and DequantizeLinear, which a runtime with
    int8 kernels fuses with what lies between them.

    Parameters
    ----------
    model
        An ONNX file.
    batches
        Inputs by name: some hundred training images as the network takes them, (N, C, H, W),
        float32. Small batches: the maps of a whole batch are in memory at once.
    settings
        How ranges are found, and the types where a file is written without naming some.
    folder
        An empty one, for intermediate files.
    """

    def __init__(
        self,
        model: Path,
        batches: Sequence[Mapping[str, np.ndarray]],
        settings: QuantizeSettings,
        folder: Path,
    ) -> None:
        self._batches, self._settings = batches, settings
        self._types = types_for(Processor.here(), settings)
        self._model, self._ranges = folder / "prepared.onnx", folder / "ranges.json"
        # The export has folded what can be; shapes are all that is missing.
        quant_pre_process(model, self._model, skip_optimization=True, skip_symbolic_shape=True)
        graph = onnx.load(self._model, load_external_data=False).graph
        constants = {each.name for each in graph.initializer}
        #: Nodes with weights, by name, in their order.
        self.nodes = tuple(
            node.name
            for node in graph.node
            if node.op_type in _WEIGHTED and constants.intersection(node.input)
        )

    def write(
        self,
        path: Path,
        types: IntegerTypes | None = None,
        *,
        only: Sequence[str] | None = None,
        but: Sequence[str] = (),
    ) -> None:
        """Write the network with its nodes in int8: all, or `only` some, `but` none of these.

        By default with the types that suit the processor of this machine. Where no node with
        weights is left, that is the network in float.
        """
        settings, types = self._settings, types or self._types
        with written_whole(path) as partial:
            if not set(self.nodes) - set(but):
                # What lies between them would still be rounded, for nothing.
                shutil.copyfile(self._model, partial)
                return
            quantize_static(
                self._model,
                partial,
                _Reader(self._batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=types.reduce_range,
                activation_type=_TYPES[types.activations],
                weight_type=QuantType.QInt8,
                nodes_to_quantize=None if only is None else list(only),
                nodes_to_exclude=list(but),
                calibrate_method=_METHODS[settings.calibration],
                # One batch after the other: histograms would keep every map of all of them.
                extra_options={"CalibStridedMinMax": 1, "CalibPercentile": settings.percentile},
                calibration_cache_path=self._ranges,
            )


class _Reader(CalibrationDataReader):
    """Hands out batches one by one, as `quantize_static` asks for them."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The batches to hand out next."""
        self._upcoming = iter(range(start_index, end_index))

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next one; None after the last."""
        number = next(self._upcoming, None)
        return None if number is None else self._batches[number]


def types_for(processor: Processor, settings: QuantizeSettings) -> IntegerTypes:
    """Choose the types of an int8 network for a processor, or take the user's choice."""
    return integer_types(processor, settings.activations, settings.reduce_range)


def noise_for(model: Path) -> dict[str, np.ndarray]:
    """A batch of normal noise for an ONNX file whose answers do not matter, but their time."""
    generator = np.random.default_rng(0)
    inputs = onnx.load(model, load_external_data=False).graph.input
    shapes = {
        each.name: [size.dim_value or 1 for size in each.type.tensor_type.shape.dim]
        for each in inputs
    }
    return {
        name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }


def within_tolerance(
    quantizer: Quantizer,
    path: Path,
    types: IntegerTypes | None = None,
    *,
    lost: Callable[[Path], float],
    divergence: Callable[[Path], float],
    tolerance: float,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[str, ...]:
    """Write the int8 network; where it loses too much, the most sensitive nodes stay in float.

    Which those are is measured with one node at a time in int8. Of them first one stays in float,
    then two, four and so on, until no more than the tolerance is lost.

    Parameters
    ----------
    quantizer
        Of the network.
    path
        Where to write it.
    types
        Of the file; by default those that suit this machine.
    lost
        What a file loses, in the unit of `tolerance`.
    divergence
        How far the answers of a file are from those of the network in float.
    tolerance
        What may be lost.
    say
        Is told what was measured.

    Returns
    -------
    tuple of str
        The nodes that stayed in float; all of them where nothing else is within the tolerance.
    """
    quantizer.write(path, types)
    if (found := lost(path)) <= tolerance:
        return ()
    say(
        f"int8 loses {found:.2f} points, more than {tolerance:g}: measuring which of "
        f"{len(quantizer.nodes)} nodes are sensitive"
    )
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "one.onnx"

        def alone(node: str) -> float:
            quantizer.write(trial, types, only=[node])
            return divergence(trial)

        by_divergence = sorted(quantizer.nodes, key=alone, reverse=True)
    count = 1
    while True:
        kept = tuple(by_divergence[:count])
        quantizer.write(path, types, but=kept)
        found = lost(path)
        say(f"{len(kept)} in float: loses {found:.2f} points")
        if found <= tolerance or len(kept) == len(quantizer.nodes):
            return kept
        count *= 2
