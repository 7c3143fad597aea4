"""Measure on the machine that runs the pipeline."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices.answers import answers
from lowrank.devices.conditions import state_of_machine, warnings_of
from lowrank.devices.device import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    QUANTIZATION,
    DeviceError,
    NodeTime,
)
from lowrank.devices.kind import NO_SETTINGS, DeviceKind
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.node_times import node_times
from lowrank.devices.processor import Processor
from lowrank.devices.runtime import get_runtime, load_runner
from lowrank.devices.turns import ratio_and_interval

_NANOSECONDS_PER_MILLISECOND = 1e6


class LocalDevice:
    """A device that runs models on this machine.

    It is created as `DeviceKind.create_device` says. It has no settings of its own.
    """

    def __init__(self, name: str, settings: dict[str, Any], own: object = NO_SETTINGS) -> None:
        self.name = name
        self._settings = settings

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models in alternating turns; see `Device.measure`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        models = {"original": Path(original), "compressed": Path(compressed)}
        machine = state_of_machine()
        sittings = [_sitting(models, measure_settings) for _ in range(measure_settings.sittings)]
        arrays = [np.array(sitting["nanoseconds"]) for sitting in sittings]
        speedup, low, high = ratio_and_interval(arrays)
        counted = {
            name: np.concatenate([array[:, column].ravel() for array in arrays])
            for column, name in enumerate(models)
        }
        return {
            **{name: _latencies(nanoseconds) for name, nanoseconds in counted.items()},
            "speedup": speedup,
            "speedup_low": low,
            "speedup_high": high,
            "repeats": counted["original"].size,
            "memory_mb": {
                name: _peak_memory_mb(model, measure_settings) for name, model in models.items()
            },
            "energy_mj": _run_program("energy_counters", list(models.values()), measure_settings),
            "environment": self.environment(settings),
            "conditions": _conditions(machine, sittings),
        }

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """See `Device.lacks_int8`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        once = dataclasses.replace(measure_settings, warmup_seconds=0, repeats=1, seconds=0)
        operators = {node.operator for node in node_times(Path(model), once).values()}
        in_float = sorted(operators & FLOAT_PRODUCTS)
        # A model whose nodes all stayed in float for accuracy is not supposed to run in int8.
        if not in_float or operators & INTEGER_PRODUCTS or not operators & QUANTIZATION:
            return None
        runtime = get_runtime(measure_settings)
        provider = runtime.environment(measure_settings).get("provider")
        return (
            f"{f'{provider} of ' if provider else ''}{runtime.label} {runtime.version} has no int8 "
            f"kernels for this model: it runs {', '.join(in_float)} in float"
        )

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.environment`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        processor = Processor.here()
        runtime = get_runtime(measure_settings)
        session = measure_settings.session
        return {
            "runtime": measure_settings.runtime,
            "runtime_version": runtime.version,
            **runtime.environment(measure_settings),
            **({"session": session} if session else {}),
            "threads": measure_settings.threads,
            "cpu": processor.cpu,
            "machine": processor.architecture,
            **processor.features,
        }

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.describe`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        return {
            **Processor.here().to_json(),
            "runtime": measure_settings.runtime,
            "runtime_version": get_runtime(measure_settings).version,
        }

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.outputs`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        outputs: list[list[float]] = load_runner(Path(model), measure_settings)()[0].tolist()
        return outputs

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.answers`."""
        measure_settings = MeasureSettings.of({**self._settings, **settings})
        return answers(Path(model), Path(images), measure_settings)

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """See `Device.node_times`."""
        return node_times(Path(model), MeasureSettings.of({**self._settings, **settings}))


def _sitting(models: dict[str, Path], settings: MeasureSettings) -> dict[str, Any]:
    """Run one of several sittings in a new process, with its share of the runs and seconds."""
    share = dataclasses.replace(
        settings,
        repeats=-(-settings.repeats // settings.sittings),
        seconds=settings.seconds / settings.sittings,
    )
    return _run_program("sitting", list(models.values()), share)


def _conditions(machine: dict[str, Any], sittings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of the machine before, the worst values of all sittings, and a warning."""
    worst = {}
    for name in sittings[0]["conditions"]:
        values = [sitting["conditions"][name] for sitting in sittings]
        worst[name] = max((value for value in values if value is not None), default=None)
    conditions = {**machine, **worst, "settled": all(sitting["settled"] for sitting in sittings)}
    return {**conditions, "warning": "; ".join(warnings_of(conditions)) or None}


def _latencies(nanoseconds: np.ndarray) -> dict[str, float]:
    milliseconds = nanoseconds / _NANOSECONDS_PER_MILLISECOND
    return {
        "p50": float(np.percentile(milliseconds, 50)),
        "p90": float(np.percentile(milliseconds, 90)),
        "p99": float(np.percentile(milliseconds, 99)),
        "mean": float(np.mean(milliseconds)),
    }


def _peak_memory_mb(model: Path, settings: MeasureSettings) -> float:
    """Return by how much a model raises the peak memory of a new process, in 10^6 bytes."""
    return float(_run_program("peak_memory", [model], settings)["bytes"]) / 1e6


def _run_program(program: str, models: list[Path], settings: MeasureSettings) -> dict[str, Any]:
    """Run a program of this folder in a new process and return its answer.

    Raises DeviceError if the process fails or answers with an error.
    """
    folder = str(Path(__file__).resolve().parents[2])
    search_path = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", f"lowrank.devices.{program}", *map(str, models),
         json.dumps(dataclasses.asdict(settings))],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
    )  # fmt: skip
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise DeviceError(
            f"{' and '.join(map(str, models))}: the process that measures ended with status "
            f"{result.returncode} ({last}). If the machine ran out of memory, free some and "
            "measure again."
        )
    answer: dict[str, Any] = json.loads(result.stdout)
    if "error" in answer:
        raise DeviceError(answer["error"])
    return answer


ENTRIES = (
    DeviceKind(
        "local",
        "the machine that runs the step.",
        create_device=LocalDevice,
        measures_here=True,
    ),
)
