"""The machine that runs the pipeline, as a device."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lowrank.devices.base import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    QUANTIZATION,
    DeviceError,
    MeasureSettings,
    NodeTime,
)
from lowrank.devices.node_times import node_times
from lowrank.devices.runtime import NANOSECONDS_PER_SECOND, load_runner, warm_up

_NANOSECONDS_PER_MILLISECOND = 1e6


class LocalDevice:
    """Runs models here. Its settings hold where a measurement does not set its own."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._settings = settings

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models turn about in this process; see `Device.measure`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        models = {"original": Path(original), "compressed": Path(compressed)}
        runners = [load_runner(model, asked) for model in models.values()]
        for run in runners:
            warm_up(run, seconds=asked.warmup_seconds)
        nanoseconds = nanoseconds_in_turns(
            *runners, runs=asked.turn_runs, repeats=asked.repeats, seconds=asked.seconds
        )
        of_turns = np.median(nanoseconds, axis=2)
        return {
            **{name: _latencies(nanoseconds[:, column]) for column, name in enumerate(models)},
            "speedup": float(np.median(of_turns[:, 0] / of_turns[:, 1])),
            "repeats": nanoseconds[:, 0].size,
            "memory_mb": {name: _peak_memory_mb(model, asked) for name, model in models.items()},
            "environment": self.environment(settings),
        }

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """See `Device.lacks_int8`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        once = dataclasses.replace(asked, warmup_seconds=0, repeats=1, seconds=0)
        operators = {node.operator for node in node_times(Path(model), once).values()}
        in_float = sorted(operators & FLOAT_PRODUCTS)
        # Where every node stayed in float for accuracy's sake, nothing was to be run in int8.
        if not in_float or operators & INTEGER_PRODUCTS or not operators & QUANTIZATION:
            return None
        return (
            f"{asked.provider} of ONNX Runtime {onnxruntime.__version__} has no int8 kernels for "
            f"this model: it runs {', '.join(in_float)} in float"
        )

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What latencies depend on here; see `Device.environment`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        return {
            "runtime_version": onnxruntime.__version__,
            "provider": asked.provider,
            "threads": asked.threads,
            "cpu": _cpu_model(),
            "machine": platform.machine(),
        }

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """See `Device.node_times`."""
        return node_times(Path(model), MeasureSettings.of({**self._settings, **settings}))


def nanoseconds_in_turns(
    original: Callable[[], object],
    compressed: Callable[[], object],
    *,
    runs: int,
    repeats: int,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> np.ndarray:
    """Time two models turn about.

    A turn is some runs of one model, and a pair of turns is one of each, close together, so that
    whatever slows the machine for a while slows both. Which goes first alternates, and the number
    of pairs is even, so that going first is no advantage to either.

    The first run of a turn is not counted: it finds the processor's caches full of the other
    model, which no application runs in between. In turns of one run it is counted.

    Parameters
    ----------
    original, compressed : callable
        Run one model once.
    runs : int
        Runs in a turn.
    repeats : int
        Counted runs of each model at least.
    seconds : float
        Time that the counted runs of both models take together at least.
    clock : callable
        The time in ns.

    Returns
    -------
    array of int64, (pairs, 2, counted runs)
        How long each counted run took, in ns: of the original, of the compressed.
    """
    models = (original, compressed)
    least_total = seconds * NANOSECONDS_PER_SECOND
    total = 0
    counted = max(runs - 1, 1)
    pairs: list[list[list[int]]] = []
    while len(pairs) * counted < repeats or total < least_total or len(pairs) % 2:
        pair: list[list[int]] = [[], []]
        for which in (0, 1) if len(pairs) % 2 == 0 else (1, 0):
            for _ in range(runs):
                start = clock()
                models[which]()
                # A clock too coarse for the run would otherwise make a ratio of zeros.
                pair[which].append(max(clock() - start, 1))
            pair[which] = pair[which][-counted:]
            total += sum(pair[which])
        pairs.append(pair)
    return np.array(pairs, dtype=np.int64)


def _latencies(nanoseconds: np.ndarray) -> dict[str, float]:
    milliseconds = nanoseconds / _NANOSECONDS_PER_MILLISECOND
    return {
        "p50": float(np.percentile(milliseconds, 50)),
        "p90": float(np.percentile(milliseconds, 90)),
        "mean": float(np.mean(milliseconds)),
    }


def _peak_memory_mb(model: Path, settings: MeasureSettings) -> float:
    """Measure in a fresh process, where no other model has been; in 10^6 bytes."""
    folder = str(Path(__file__).resolve().parents[2])
    search = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "lowrank.devices.peak_memory", str(model),
         json.dumps(dataclasses.asdict(settings))],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
    )  # fmt: skip
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise DeviceError(
            f"{model}: the process that measures the model's memory ended with status "
            f"{result.returncode} ({last}). If the machine was short of memory, free some and "
            "measure again."
        )
    answer = json.loads(result.stdout)
    if "error" in answer:
        raise DeviceError(answer["error"])
    return answer["bytes"] / 1e6


def _cpu_model() -> str:
    """Ask the processor for its name; "unknown" where it tells none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
