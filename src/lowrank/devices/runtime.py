"""Load a model in ONNX Runtime, with inputs to run it on, and warm it up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings

NANOSECONDS_PER_SECOND = 1e9

# Warm-up: the minimum number of runs in an interval, the relative difference up to which two
# interval medians count as equal, and the multiple of the requested time after which it stops.
_MIN_RUNS = 3
_STABLE = 0.03
_MAX_DURATION = 10

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# Types of inputs that models are measured with.
_FLOATS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_INTEGERS = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def load_runner(model: Path, settings: MeasureSettings) -> Callable[[], list[np.ndarray]]:
    """Load an ONNX model and return a function that computes its outputs for fixed inputs.

    The inputs are those of `fixed_inputs`. Raises DeviceError if the execution provider is not
    available, if the file is missing, if this version of ONNX Runtime cannot read it, or if an
    input is not a batch of the requested size, with fixed sizes in all other dimensions.
    """
    session = open_session(model, settings)
    _require_fixed_sizes(model, session, settings.batch_size)
    feed = fixed_inputs(model, session, settings.batch_size)
    return lambda: session.run(None, feed)


def open_session(
    model: Path, settings: MeasureSettings, *, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load an ONNX model with any inputs. Raises DeviceError like `load_runner`.

    With `profile`, ONNX Runtime writes its own profile of each run to a file whose path starts with
    `profile`.
    """
    _require_provider(settings.provider)
    if not model.is_file():
        raise DeviceError(f"{model}: no such model. Export it, then measure again.")
    options = onnxruntime.SessionOptions()
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[settings.optimization]
    options.log_severity_level = 3  # Errors only: its warnings are about its own choices.
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=[settings.provider])
    except Exception as error:  # ONNX Runtime's exceptions have no narrower base class.
        raise DeviceError(
            f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load this file of "
            f"{model.stat().st_size} bytes as a model ({error}). If the file was truncated during "
            "a copy, export or download it again. If its operator set is too new, install a newer "
            "onnxruntime."
        ) from error
    # ONNX Runtime silently falls back to the CPU if a provider fails to start.
    if settings.provider not in session.get_providers():
        raise DeviceError(
            f"execution provider '{settings.provider}' is installed but did not start for {model}. "
            f"Running: {', '.join(session.get_providers())}. Check its drivers, or set `provider` "
            "in params.yaml to one of these."
        )
    return session


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


def _require_provider(provider: str) -> None:
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise DeviceError(
            f"execution provider '{provider}' is not available here. Available: "
            f"{', '.join(available)}. Set `provider` in params.yaml to one of these, or install "
            "the build of onnxruntime that provides it."
        )


def fixed_inputs(
    model: Path, session: onnxruntime.InferenceSession, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the same inputs for a model on every call, by name.

    They are normal noise, and zeros for whole numbers and booleans, which are in the range of any
    table that they may select from. Open dimensions get the batch size. Raises DeviceError for an
    input of another type.
    """
    generator = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch_size for size in value.shape]
        if value.type in _FLOATS:
            noise = generator.standard_normal(shape, dtype=np.float32)
            feed[value.name] = noise.astype(_FLOATS[value.type], copy=False)
        elif value.type in _INTEGERS:
            feed[value.name] = np.zeros(shape, _INTEGERS[value.type])
        else:
            raise DeviceError(
                f"{model}: the model's input '{value.name}' has the type {value.type}, but one of "
                f"{', '.join([*_FLOATS, *_INTEGERS])} is expected. Export the network with an "
                "input of one of these types."
            )
    return feed


def _require_fixed_sizes(
    model: Path, session: onnxruntime.InferenceSession, batch_size: int
) -> None:
    if not session.get_inputs():
        raise DeviceError(
            f"{model}: the model has no inputs, but at least one is expected. Export the network "
            "with the samples as its input."
        )
    for value in session.get_inputs():
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
