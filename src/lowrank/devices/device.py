"""What a device is, what a measurement is asked for, and the one exception for what goes wrong.

This folder needs NumPy, ONNX Runtime and Python 3.9 or later, and nothing else of the package, so
that it can be copied to a board as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Protocol

# What ONNX Runtime calls products with weights.
FLOAT_PRODUCTS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
INTEGER_PRODUCTS = frozenset(
    {"QLinearConv", "QLinearConvTranspose", "QGemm", "QLinearMatMul"}
    | {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
# Levels of graph optimisation.
OPTIMIZATIONS = ("all", "extended", "basic", "none")
# What a quantised model has before and behind them.
QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})


class DeviceError(Exception):
    """A device, a model file or a setting is not as it must be for a measurement.

    The message is one paragraph for the user: what was found, what was expected, what to do.
    """


class Device(Protocol):
    """A place where models run."""

    name: str

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models against each other.

        Parameters
        ----------
        original, compressed : Path
            Models of one input each, of floating-point images.
        settings : dict
            Fields of `MeasureSettings` by name.

        Returns
        -------
        dict
            `original` and `compressed`, each with the latencies `p50`, `p90`, `p99` and `mean` of
            one run in ms; `speedup`, the median over pairs of turns of original / compressed, each
            the median of its turn, and `speedup_low` and `speedup_high`, which hold it 95 times in
            100; `repeats`, the runs of each that were counted; `memory_mb`, what loading and
            running each adds to the peak memory of a process, in 10^6 bytes; `environment`;
            `conditions` of the machine meanwhile, with a `warning` or None; `energy_mj` of one run
            of each, less what the idle machine takes, None and `not_measured` where nothing counts
            it. No paths.

        Raises
        ------
        DeviceError
            When a model cannot be read or run, or a setting cannot be met.
        """

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """Why an int8 model is run in float here, for a user; None where it is not.

        A runtime without int8 kernels computes such a model in float, slower than the float model.
        `settings` as for `measure`; DeviceError likewise.
        """

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What latencies depend on: the runtime's version, the provider, threads, the processor."""

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the processor can do: see `Processor.to_json`, and `runtime_version`."""

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """What a model answers there, (batch, outputs), to the noise that it is measured on.

        The same noise on every device: answers can be compared. `settings` as for `measure`;
        DeviceError likewise.
        """

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """What a model answers there to the images of a .npy file, (N, C, H, W): (N, outputs).

        Of the images that fill whole batches. `settings` as for `measure`; DeviceError likewise.
        """

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """The time of each node of one ONNX model, by its name in the optimized graph.

        `settings` as for `measure`; DeviceError likewise.
        """


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """What a node takes: its operator, as ONNX Runtime calls it, and ms in one run."""

    operator: str
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """How to measure.

    `threads` inside an operator; the ONNX Runtime execution `provider` and the level of its graph
    `optimization`; `batch_size` in images. In each of several `sittings`, processes of their own:
    `warmup_seconds` for each model at least, before the first timed run; then turns of `turn_runs`
    runs of one model and of the other. Of each turn the first run is not counted, unless it is the
    only one. In all at least `repeats` runs of each are, and more until those of both have taken
    `seconds`. Energy is counted over `energy_seconds` of each model, and as many of none before and
    after; 0: not at all.
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
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise DeviceError(
                    f"benchmark setting '{name}' is {value!r}; it must be a number of at least "
                    f"{least}. Correct it in params.yaml."
                )
        if self.optimization not in OPTIMIZATIONS:
            raise DeviceError(
                f"benchmark setting 'optimization' is {self.optimization!r}; it must be one of "
                f"{', '.join(OPTIMIZATIONS)}. Correct it in params.yaml."
            )

    @classmethod
    def of(cls, settings: dict[str, Any]) -> MeasureSettings:
        """From a dictionary; what is not in it has its default. DeviceError for unknown names.

        The device's `kind` may be among them, so that its section of params.yaml fits as it is.
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


# Settings of which there may be several.
_SEVERAL = ("threads", "batch_size")


def combinations(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each measurement on a device, by a name; the main one first.

    Several `threads` and several `batch_size` are every combination.
    """
    several = {
        name: settings[name] if isinstance(settings[name], (list, tuple)) else [settings[name]]
        for name in _SEVERAL
        if name in settings
    }
    found = {}
    for values in itertools.product(*several.values()):
        chosen = dict(zip(several, values))  # noqa: B905  (`strict` is Python 3.10's)
        name = "_".join(f"{each}_{value}" for each, value in chosen.items())
        found[name] = {**settings, **chosen}
    return found


def main_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The first of `combinations`."""
    return next(iter(combinations(settings).values()))


_LEAST = {
    "threads": 1,
    "batch_size": 1,
    "sittings": 1,
    "turn_runs": 1,
    "warmup_seconds": 0,
    "repeats": 1,
    "seconds": 0,
    "energy_seconds": 0,
}
