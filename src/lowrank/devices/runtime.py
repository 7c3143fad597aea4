"""The interface of runtimes, which run ONNX files, and what all of them have in common.

A module `runtime_<name>.py` of this folder adds the runtime `<name>`: its `RUNTIME` is a `Runtime`.
It must not import the runtime's own package before the runtime is used.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MODULE_OF_RUNTIME, MeasureSettings

NANOSECONDS_PER_SECOND = 1e9

# Warm-up: the minimum number of runs in an interval, the relative difference up to which two
# interval medians count as equal, and the multiple of the requested time after which it stops.
_MIN_RUNS = 3
_STABLE = 0.03
_MAX_DURATION = 10


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """An input of a loaded model.

    Attributes
    ----------
    name : str
        Name of the input.
    type : str
        Its type, as the runtime names it.
    dtype : type or None
        Its NumPy type; None for a type that models are not measured with, such as texts.
    shape : list of int, str or None
        Its sizes. A size that is not fixed is no int.
    """

    name: str
    type: str
    dtype: Any
    shape: list[Any]


class LoadedModel(Protocol):
    """A model that a runtime has loaded. `inputs` are its inputs, in the order of the file."""

    inputs: list[ModelInput]

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs by name, in the order of the file."""

    def node_microseconds(self) -> dict[tuple[str, str], list[float]]:
        """Return the µs of each node in each run so far, by its name and operator.

        Only once, and only for a model that was loaded with `profile`. Names are those of the
        file's nodes, or of their outputs. Operators have ONNX Runtime's names, those with integer
        kernels too: `Conv`, `QLinearConv`.
        """


class Runtime(Protocol):
    """A program that runs ONNX files. `label` is its name, `package` the Python package."""

    label: str
    package: str

    @property
    def version(self) -> str:
        """Its version. Raises DeviceError if it is not installed."""

    def environment(self, settings: MeasureSettings) -> dict[str, Any]:
        """Return what latencies depend on, besides its version, `threads` and `session`."""

    def load(self, model: Path, settings: MeasureSettings, *, profile: bool = False) -> LoadedModel:
        """Load a model file, which exists. With `profile`, the times of its nodes are recorded.

        Raises DeviceError if the runtime is not installed or cannot read the file.
        """


def get_runtime(settings: MeasureSettings) -> Runtime:
    """Return the runtime of a measurement. It need not be installed."""
    module = importlib.import_module(MODULE_OF_RUNTIME.format(settings.runtime))
    runtime: Runtime = module.RUNTIME
    return runtime


def imported(runtime: Runtime) -> Any:
    """Return the Python package of a runtime.

    Raises DeviceError if it is not installed or does not load.
    """
    try:
        return importlib.import_module(runtime.package)
    except ImportError as error:
        extra = (
            ""
            if runtime.package == "onnxruntime"
            else f", or `pip install 'lowrank[{runtime.package}]'` on the machine with lowrank"
        )
        raise DeviceError(
            f"{runtime.label} does not load in {sys.executable} ({error}). Install it: "
            f"`{sys.executable} -m pip install {runtime.package}`{extra}. Or set `runtime` in "
            "params.yaml to another runtime."
        ) from error


def option_text(value: Any, words: tuple[str, str]) -> str:
    """Return the text of an entry of `session`. `words` are the texts of False and True."""
    return words[value] if isinstance(value, bool) else str(value)


def load_runner(model: Path, settings: MeasureSettings) -> Callable[[], list[np.ndarray]]:
    """Load an ONNX model and return a function that computes its outputs for fixed inputs.

    The inputs are those of `fixed_inputs`. Raises DeviceError like `load_model`, or if an input is
    not a batch of the requested size, with fixed sizes in all other dimensions.
    """
    loaded = load_model(model, settings)
    _require_fixed_sizes(model, loaded, settings.batch_size)
    feed = fixed_inputs(model, loaded, settings.batch_size)
    return lambda: loaded.run(feed)


def load_model(model: Path, settings: MeasureSettings, *, profile: bool = False) -> LoadedModel:
    """Load an ONNX model with any inputs in the runtime of the settings.

    With `profile`, the times of its nodes are recorded. Raises DeviceError if the file is missing,
    if the runtime is not installed, if it cannot read the file, or if it lacks a setting.
    """
    if not model.is_file():
        raise DeviceError(f"{model}: no such model. Export it, then measure again.")
    return get_runtime(settings).load(model, settings, profile=profile)


def warm_up(
    run: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> bool:
    """Run a model until its latency is stable.

    The warm-up fills the caches, raises the processor's clock rate and allocates memory.

    Parameters
    ----------
    run : callable
        Function that runs the model once.
    seconds : float
        Minimum duration. The maximum is ten times this. With 0, the model runs once.
    clock : callable
        Function that returns the time in ns.

    Returns
    -------
    bool
        Whether the latency became stable: the medians of two consecutive intervals, each a quarter
        of `seconds` long, differ by at most 3 %.
    """
    run()
    minimum = seconds * NANOSECONDS_PER_SECOND
    start, previous = clock(), None
    while minimum > 0:
        durations: list[int] = []
        end = clock() + minimum / 4
        while clock() < end or len(durations) < _MIN_RUNS:
            run_start = clock()
            run()
            durations.append(clock() - run_start)
        median = statistics.median(durations)
        stable = previous is not None and abs(median - previous) <= _STABLE * previous
        elapsed = clock() - start
        if elapsed >= minimum and stable:
            return True
        if elapsed >= _MAX_DURATION * minimum:
            return False
        previous = median
    return True


def fixed_inputs(model: Path, loaded: LoadedModel, batch_size: int) -> dict[str, np.ndarray]:
    """Return the same inputs for a model on every call, by name.

    They are normal noise, and zeros for whole numbers and booleans, which are in the range of any
    table that they may select from. Open dimensions get the batch size. Raises DeviceError for an
    input of another type.
    """
    generator = np.random.default_rng(0)
    feed = {}
    for value in loaded.inputs:
        shape = [size if isinstance(size, int) else batch_size for size in value.shape]
        if value.dtype is None:
            raise DeviceError(
                f"{model}: the model's input '{value.name}' has the type {value.type}, but a type "
                "of floating-point or whole numbers or booleans is expected. Export the network "
                "with an input of such a type."
            )
        if np.dtype(value.dtype).kind == "f":
            noise = generator.standard_normal(shape, dtype=np.float32)
            feed[value.name] = noise.astype(value.dtype, copy=False)
        else:
            feed[value.name] = np.zeros(shape, value.dtype)
    return feed


def _require_fixed_sizes(model: Path, loaded: LoadedModel, batch_size: int) -> None:
    if not loaded.inputs:
        raise DeviceError(
            f"{model}: the model has no inputs, but at least one is expected. Export the network "
            "with the samples as its input."
        )
    for value in loaded.inputs:
        batch, *sizes = value.shape or [None]
        fixed_batch = isinstance(batch, int)
        if not all(isinstance(size, int) for size in sizes) or (
            fixed_batch and batch != batch_size
        ):
            raise DeviceError(
                f"{model}: the model's input '{value.name}' has shape {value.shape}, but a batch "
                f"of {batch_size} and fixed sizes in all other dimensions are expected. Change "
                "`batch_size` in params.yaml, or export the model with only its batch dimension "
                "free."
            )
