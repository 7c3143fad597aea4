"""A model loaded in ONNX Runtime, with an input to run it on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from lowrank.devices.device import DeviceError, MeasureSettings

NANOSECONDS_PER_SECOND = 1e9

# Of warming up: the least runs of a stretch, how far two may differ, and after how many times the
# seconds asked for it ends in any case.
_LEAST_RUNS = 3
_EVEN = 0.03
_MOST = 10

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def load_runner(model: Path, settings: MeasureSettings) -> Callable[[], list[np.ndarray]]:
    """Load an ONNX model; the function returned gives its outputs for fixed normal noise.

    Raises DeviceError when the execution provider is not there, when the file is missing or no
    model that this version of ONNX Runtime reads, or when the model's input is not one batch of
    floating-point images of the size asked for.
    """
    session = open_session(model, settings)
    feed = {session.get_inputs()[0].name: _noise(model, session, settings.batch_size)}
    return lambda: session.run(None, feed)


def open_session(
    model: Path, settings: MeasureSettings, *, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load an ONNX model, of any inputs; raises DeviceError as `load_runner` does.

    With `profile`, ONNX Runtime's own profile of each run goes to a file whose name begins so.
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
    options.log_severity_level = 3  # errors: what it warns about are its own choices
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=[settings.provider])
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise DeviceError(
            f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load this file of "
            f"{model.stat().st_size} bytes as a model ({error}). If it was cut off while it was "
            "copied, export or fetch it again; if its operator set is too new, install a newer "
            "onnxruntime."
        ) from error
    # ONNX Runtime falls back to the CPU without a word when a provider fails to start.
    if settings.provider not in session.get_providers():
        raise DeviceError(
            f"execution provider '{settings.provider}' is installed but did not start for {model}; "
            f"running are: {', '.join(session.get_providers())}. Check its drivers, or name one of "
            "these as `provider` in params.yaml."
        )
    return session


def warm_up(
    run: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> bool:
    """Run until caches are full, clocks have risen and memory is had: until it runs evenly.

    Parameters
    ----------
    run : callable
        Runs a model once.
    seconds : float
        How long at least; ten times as long at most. 0: once.
    clock : callable
        The time in ns.

    Returns
    -------
    bool
        Whether it came to run evenly: the medians of two stretches in a row, a quarter of the
        seconds each, are within 3 % of each other.
    """
    run()
    least = seconds * NANOSECONDS_PER_SECOND
    start, last = clock(), None
    while least > 0:
        durations: list[int] = []
        end = clock() + least / 4
        while clock() < end or len(durations) < _LEAST_RUNS:
            begun = clock()
            run()
            durations.append(clock() - begun)
        middle = statistics.median(durations)
        evenly = last is not None and abs(middle - last) <= _EVEN * last
        passed = clock() - start
        if passed >= least and evenly:
            return True
        if passed >= _MOST * least:
            return False
        last = middle
    return True


def _require_provider(provider: str) -> None:
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise DeviceError(
            f"execution provider '{provider}' is not available here. Available: "
            f"{', '.join(available)}. Name one of these as `provider` in params.yaml, or install "
            "the build of onnxruntime that has it."
        )


def _noise(model: Path, session: onnxruntime.InferenceSession, batch_size: int) -> np.ndarray:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"'{each.name}' ({each.type})" for each in inputs) or "none"
        raise DeviceError(
            f"{model}: its inputs are {found}; one of type tensor(float) is expected. Export the "
            "network with its images as the only input."
        )
    batch, *image = inputs[0].shape
    fixed_batch = isinstance(batch, int)
    if not all(isinstance(size, int) for size in image) or (fixed_batch and batch != batch_size):
        raise DeviceError(
            f"{model}: its input has shape {inputs[0].shape}; a batch of {batch_size} and "
            "otherwise fixed sizes are expected. Change `batch_size` in params.yaml, or export "
            "the model with only its batch free."
        )
    return np.random.default_rng(0).standard_normal((batch_size, *image), dtype=np.float32)
