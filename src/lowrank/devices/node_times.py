"""Measure how long each node of a model takes, from the profile of its runtime."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from lowrank.devices.device import NodeTime
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import LoadedModel, fixed_inputs, load_model, warm_up

# Lower bound of the corrected time of a node, in µs.
_MIN_MICROSECONDS = 0.05


def node_times(model: Path, settings: MeasureSettings) -> dict[str, NodeTime]:
    """Return the mean time of each node of a model, without the slowest tenth of the runs.

    Recording the profile adds some microseconds to each node, which is most of the measured time of
    a small node. So the model is also timed without the profile. The total overhead is divided
    equally among the nodes and subtracted, so the times of all nodes add up to the time of the
    model.

    Parameters
    ----------
    model : Path
        An ONNX model whose inputs have fixed shapes. Only the batch dimension may be free.
    settings : MeasureSettings
        Settings that say how often and how long to run the model, both with and without the
        profile.

    Returns
    -------
    dict
        NodeTime by the name of the node in the optimized graph. Fused nodes share one entry.

    Raises
    ------
    DeviceError
        In the same cases as `load_model` and `fixed_inputs` of `lowrank.devices.runtime`.
    """
    model_time = _typical(_run(model, load_model(model, settings), settings))
    profiled_model = load_model(model, settings, profile=True)
    runs = len(_run(model, profiled_model, settings))
    durations = profiled_model.node_microseconds()
    nodes = list(durations)
    profiled = np.array([_typical(durations[node][-runs:]) for node in nodes])
    return {
        name: NodeTime(operator, float(microseconds) / 1e3)
        for (name, operator), microseconds in zip(  # noqa: B905  (`strict` is Python 3.10's)
            nodes, without_profiling(profiled, model_time)
        )
    }


def without_profiling(profiled: np.ndarray, model_time: float) -> np.ndarray:
    """Return the times of nodes without the overhead of the profile, in the unit of the arguments.

    Parameters
    ----------
    profiled : array, (nodes,)
        Time of each node according to the profile.
    model_time : float
        Time of the model when no profile is written.
    """
    overhead = (profiled.sum() - model_time) / max(len(profiled), 1)
    times: np.ndarray = np.maximum(profiled - overhead, _MIN_MICROSECONDS)
    return times


def _run(model: Path, loaded: LoadedModel, settings: MeasureSettings) -> list[float]:
    """Run the model on fixed inputs after a warm-up and return each run's time in µs."""
    feed = fixed_inputs(model, loaded, settings.batch_size)
    warm_up(lambda: loaded.run(feed), seconds=settings.warmup_seconds)
    durations: list[float] = []
    end = time.perf_counter() + settings.seconds
    while len(durations) < settings.repeats or time.perf_counter() < end:
        start = time.perf_counter_ns()
        loaded.run(feed)
        durations.append((time.perf_counter_ns() - start) / 1e3)
    return durations


def _typical(microseconds: list[float]) -> float:
    """Return the mean without the slowest tenth. It averages out the clock's 1 µs resolution."""
    return float(np.mean(np.sort(microseconds)[: max(1, int(0.9 * len(microseconds)))]))
