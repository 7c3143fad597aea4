"""The device interface, and the exception that devices raise.

This folder needs only Python 3.9 or later, NumPy and the runtime that is used. It imports nothing
else from the package, so it can be copied to a board unchanged.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

# ONNX Runtime's names for operators that multiply by weights.
FLOAT_PRODUCTS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
INTEGER_PRODUCTS = frozenset(
    {"QLinearConv", "QLinearConvTranspose", "QGemm", "QLinearMatMul"}
    | {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
# Operators that a quantized model has before and after those products.
QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})


class DeviceError(Exception):
    """Raised when a device, a model file or a setting makes a measurement impossible.

    The message is one paragraph for the user. It says what was found, what was expected and what
    to do.
    """


class Device(Protocol):
    """A machine that runs models."""

    name: str

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models against each other.

        Parameters
        ----------
        original, compressed : Path
            ONNX models whose inputs are batches: images, or several inputs, also whole numbers.
        settings : dict
            Fields of `MeasureSettings` by name.

        Returns
        -------
        dict
            The measurement, without any paths:

            - `original` and `compressed`: the latencies `p50`, `p90`, `p99` and `mean` of one run,
              in ms.
            - `speedup`: the ratio original / compressed of the median latencies of two paired
              turns, as the median over all pairs. `speedup_low` and `speedup_high` are the bounds
              of its 95 % confidence interval.
            - `repeats`: the number of counted runs of each model.
            - `memory_mb`: by how much loading and running each model raises the peak memory of a
              process, in 10^6 bytes.
            - `environment`: see `environment`.
            - `conditions`: the state of the machine during the measurement, with a `warning` or
              None.
            - `energy_mj`: the energy of one run of each model, without the idle consumption. If
              no counter is available, the values are None and `not_measured` gives the reason.

        Raises
        ------
        DeviceError
            If a model cannot be read or run, or if a setting is not supported.
        """

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """Return the reason why this device runs an int8 model in float, or None if it does not.

        A runtime without int8 kernels computes an int8 model in float, slower than the float
        model. The reason is a text for the user. `settings` and DeviceError are as in `measure`.
        """

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what latencies depend on: runtime version, provider, threads and processor."""

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the features of the processor (`Processor.to_json`) and `runtime_version`."""

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """Return the outputs of a model, (batch, outputs), for the inputs that it is measured on.

        These inputs are noise, and zeros for whole numbers. They are the same on every device, so
        outputs can be compared between devices. `settings` and DeviceError are as in `measure`.
        """

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """Return the outputs of a model, (N, outputs), for the images of a .npy file, (N, C, H, W).

        For other inputs, the file holds one array (N, ...), or it is an .npz file with an array for
        each input of the model, by its name. Samples that do not fill a complete batch are left
        out. `settings` and DeviceError are as in `measure`.
        """

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """Return the time of each node of an ONNX model, by its name in the optimized graph.

        `settings` and DeviceError are as in `measure`.
        """


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """The operator of a node, as ONNX Runtime names it, and the node's time in one run, in ms."""

    operator: str
    milliseconds: float
