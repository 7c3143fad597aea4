"""The device interface, the settings of a measurement, and the exception that devices raise.

This folder needs only Python 3.9 or later, NumPy and ONNX Runtime. It imports nothing else from
the package, so it can be copied to a board unchanged.
"""

from __future__ import annotations

import dataclasses
import itertools
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
# Graph optimization levels.
OPTIMIZATIONS = ("all", "extended", "basic", "none")
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
            ONNX models with a single input: a batch of floating-point images.
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
        """Return the outputs of a model, (batch, outputs), for the noise that it is measured on.

        The noise is the same on every device, so outputs can be compared between devices.
        `settings` and DeviceError are as in `measure`.
        """

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """Return the outputs of a model, (N, outputs), for the images of a .npy file, (N, C, H, W).

        Images that do not fill a complete batch are left out. `settings` and DeviceError are as in
        `measure`.
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


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """The settings of a measurement.

    Attributes
    ----------
    threads : int
        Threads inside one operator.
    provider : str
        Execution provider of ONNX Runtime.
    optimization : str
        Graph optimization level of ONNX Runtime, one of `OPTIMIZATIONS`.
    batch_size : int
        Images in a batch.
    sittings : int
        Processes over which the runs are distributed. Each one warms both models up, then
        alternates between turns of one model and turns of the other.
    warmup_seconds : float
        Minimum time that each model runs before the first timed run.
    turn_runs : int
        Runs in a turn. The first run of a turn is not counted, unless it is the only one.
    repeats : int
        Minimum number of counted runs of each model, over all sittings.
    seconds : float
        Minimum total time of the counted runs of both models, over all sittings.
    energy_seconds : float
        Time over which the energy of each model is counted. The idle machine is counted for the
        same time before and after. 0 disables the measurement of energy.
    """

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    optimization: str = "all"
    batch_size: int = 1
    sittings: int = 5
    warmup_seconds: float = 0.5
    turn_runs: int = 10
    repeats: int = 50
    seconds: float = 2.0
    energy_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not value >= minimum
            ):
                raise DeviceError(
                    f"benchmark setting '{name}' is {value!r}; it must be a number of at least "
                    f"{minimum}. Correct it in params.yaml."
                )
        if self.optimization not in OPTIMIZATIONS:
            raise DeviceError(
                f"benchmark setting 'optimization' is {self.optimization!r}; it must be one of "
                f"{', '.join(OPTIMIZATIONS)}. Correct it in params.yaml."
            )

    @classmethod
    def of(cls, settings: dict[str, Any]) -> MeasureSettings:
        """Create settings from a dictionary. Missing entries take their default.

        The entry `kind` is ignored, so the device's section of params.yaml can be passed unchanged.
        Raises DeviceError for unknown names and invalid values.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        settings = {name: value for name, value in settings.items() if name != "kind"}
        for name in settings:
            if name not in known:
                raise DeviceError(
                    f"unknown benchmark setting '{name}'. Known: {', '.join(sorted(known))}. "
                    "Correct it in params.yaml."
                )
        return cls(**settings)


# Settings that accept a list of values.
_LIST_SETTINGS = ("threads", "batch_size")


def combinations(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each measurement on a device by name, the main measurement first.

    Lists of `threads` and `batch_size` are expanded to every combination.
    """
    values_by_name = {
        name: settings[name] if isinstance(settings[name], (list, tuple)) else [settings[name]]
        for name in _LIST_SETTINGS
        if name in settings
    }
    measurements = {}
    for values in itertools.product(*values_by_name.values()):
        chosen = dict(zip(values_by_name, values))  # noqa: B905  (`strict` is Python 3.10's)
        name = "_".join(f"{key}_{value}" for key, value in chosen.items())
        measurements[name] = {**settings, **chosen}
    return measurements


def main_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the main measurement, the first of `combinations`."""
    return next(iter(combinations(settings).values()))


_MINIMUM = {
    "threads": 1,
    "batch_size": 1,
    "sittings": 1,
    "turn_runs": 1,
    "warmup_seconds": 0,
    "repeats": 1,
    "seconds": 0,
    "energy_seconds": 0,
}
