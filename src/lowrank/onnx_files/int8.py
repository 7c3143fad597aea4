"""An exported network in 8 bits, weights and activations: ONNX Runtime's static quantisation."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from lowrank.core.progress import Progress
from lowrank.devices.processor import IntegerTypes, Processor, integer_types
from lowrank.files import written_whole

# Nodes with weights. What lies between them (pooling, sums, concatenation) follows them.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Elements of the inputs of one run of calibration: eight images of CIFAR-10, one of ImageNet.
_PIECE_ELEMENTS = 8 * 3 * 32 * 32

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
        float32. Each is run in small pieces: ONNX Runtime keeps all maps of what it runs at once.
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
        self._batches, self._settings = Pieces(batches), settings
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
            # For each piece the calibration prints that it collects data.
            with contextlib.redirect_stdout(io.StringIO()):
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
                    # Piece by piece: histograms would keep every map of all of them.
                    extra_options={
                        "CalibStridedMinMax": 1,
                        "CalibPercentile": settings.percentile,
                    },
                    calibration_cache_path=self._ranges,
                )


class Pieces(Sequence[Mapping[str, np.ndarray]]):
    """Batches, cut into pieces of few images, each made when it is asked for.

    Calibration keeps every map of a network until its extremes are known: for a ResNet-56 and 250
    images at once that is gigabytes.
    """

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches
        self._last: tuple[int, Mapping[str, np.ndarray]] | None = None
        self._places = [
            (number, start, start + step)
            for number in range(len(batches))
            for count, step in [self._size(number)]
            for start in range(0, count, step)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        number, start, end = self._places[index]
        return {name: each[start:end] for name, each in self._batch(number).items()}

    def _batch(self, number: int) -> Mapping[str, np.ndarray]:
        if self._last is None or self._last[0] != number:
            self._last = (number, self._batches[number])
        return self._last[1]

    def _size(self, number: int) -> tuple[int, int]:
        """Images of a batch, and of each of its pieces."""
        first = next(iter(self._batch(number).values()))
        return len(first), max(1, _PIECE_ELEMENTS // max(first[0].size, 1))


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


@dataclass(frozen=True)
class Kept:
    """What a search left in float.

    `nodes` by name; `lost`, in the unit of the tolerance; `within`, whether that is within it;
    `measured`, of how many nodes the sensitivity was measured.
    """

    nodes: tuple[str, ...]
    lost: float
    within: bool
    measured: int = 0


def within_tolerance(
    quantizer: Quantizer,
    path: Path,
    types: IntegerTypes | None = None,
    *,
    lost: Callable[[Path], float],
    divergence: Callable[[Path], float],
    tolerance: float,
    seconds: float = math.inf,
    but: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Kept:
    """Write the int8 network; where it loses too much, the most sensitive nodes stay in float.

    Which those are is measured with one node at a time in int8. Of them first one stays in float,
    then two, four and so on, until no more than the tolerance is lost. Half of `seconds` is for
    the measurement; nodes that were not reached count as less sensitive than all that were. When
    the time is over, the file with the least loss so far stays.

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
    seconds
        How long the search may take. The step that is under way when they are over is finished.
    but
        Nodes that stay in float in any case.
    say
        Is told what was measured.
    clock
        The time in seconds.
    """
    start = clock()
    quantizer.write(path, types, but=but)
    if (found := lost(path)) <= tolerance:
        return Kept((), found, within=True)
    candidates = [node for node in quantizer.nodes if node not in but]
    limit = f", for at most {seconds:.0f} seconds" if seconds < math.inf else ""
    say(
        f"int8 loses {found:.2f} points, more than {tolerance:g}: measuring which of "
        f"{len(candidates)} nodes are sensitive{limit}"
    )
    measured = _sensitivities(
        quantizer, candidates, types, divergence, until=start + seconds / 2, clock=clock
    )
    order = sorted(measured, key=measured.__getitem__, reverse=True)
    order += [node for node in candidates if node not in measured]
    best, count = Kept((), found, within=False, measured=len(measured)), 1
    while clock() < start + seconds and len(best.nodes) < len(candidates):
        kept = tuple(order[:count])
        quantizer.write(path, types, but=(*but, *kept))
        found = lost(path)
        say(f"{len(kept)} in float ({_listed(kept)}): loses {found:.2f} points")
        if found <= tolerance or len(kept) == len(candidates):
            return Kept(kept, found, found <= tolerance, len(measured))
        if found < best.lost:
            best = Kept(kept, found, within=False, measured=len(measured))
        count *= 2
    say(
        f"warning: the search ended after {clock() - start:.0f} seconds "
        f"(`quantize.search_seconds`), {len(measured)} of {len(candidates)} nodes measured; the "
        f"file loses {best.lost:.2f} points with {len(best.nodes)} nodes in float"
    )
    quantizer.write(path, types, but=(*but, *best.nodes))
    return best


def _sensitivities(
    quantizer: Quantizer,
    nodes: Sequence[str],
    types: IntegerTypes | None,
    divergence: Callable[[Path], float],
    *,
    until: float,
    clock: Callable[[], float],
) -> dict[str, float]:
    """How far the answers move by each node alone in int8; of as many as there is time for."""
    progress, found = Progress(len(nodes), "nodes"), {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "one.onnx"
        for node in nodes:
            if clock() >= until:
                break
            quantizer.write(trial, types, only=[node])
            found[node] = divergence(trial)
            progress.advance()
    return found


def _listed(nodes: Sequence[str], most: int = 4) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return ", ".join(nodes[:most]) + more
