"""The machine that runs the pipeline, as a device."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lowrank.devices.answers import answers
from lowrank.devices.conditions import state_of_machine, warnings_of
from lowrank.devices.device import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    QUANTIZATION,
    DeviceError,
    MeasureSettings,
    NodeTime,
)
from lowrank.devices.node_times import node_times
from lowrank.devices.processor import Processor
from lowrank.devices.runtime import load_runner
from lowrank.devices.turns import ratio_and_interval

_NANOSECONDS_PER_MILLISECOND = 1e6


class LocalDevice:
    """Runs models here. Its settings hold where a measurement does not set its own."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._settings = settings

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models turn about; see `Device.measure`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        models = {"original": Path(original), "compressed": Path(compressed)}
        machine = state_of_machine()
        sittings = [_sitting(models, asked) for _ in range(asked.sittings)]
        arrays = [np.array(each["nanoseconds"]) for each in sittings]
        speedup, low, high = ratio_and_interval(arrays)
        counted = {
            name: np.concatenate([each[:, column].ravel() for each in arrays])
            for column, name in enumerate(models)
        }
        return {
            **{name: _latencies(nanoseconds) for name, nanoseconds in counted.items()},
            "speedup": speedup,
            "speedup_low": low,
            "speedup_high": high,
            "repeats": counted["original"].size,
            "memory_mb": {name: _peak_memory_mb(model, asked) for name, model in models.items()},
            "energy_mj": _answer("energy_counters", list(models.values()), asked),
            "environment": self.environment(settings),
            "conditions": _conditions(machine, sittings),
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
        processor = Processor.here()
        return {
            "runtime_version": onnxruntime.__version__,
            "provider": asked.provider,
            "threads": asked.threads,
            "cpu": processor.cpu,
            "machine": processor.architecture,
            **processor.features,
        }

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.describe`."""
        return {**Processor.here().to_json(), "runtime_version": onnxruntime.__version__}

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.outputs`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        return load_runner(Path(model), asked)()[0].tolist()

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.answers`."""
        asked = MeasureSettings.of({**self._settings, **settings})
        return answers(Path(model), Path(images), asked)

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """See `Device.node_times`."""
        return node_times(Path(model), MeasureSettings.of({**self._settings, **settings}))


def _sitting(models: dict[str, Path], settings: MeasureSettings) -> dict[str, Any]:
    """One of several, in a process of its own, with its share of runs and seconds."""
    share = dataclasses.replace(
        settings,
        repeats=-(-settings.repeats // settings.sittings),
        seconds=settings.seconds / settings.sittings,
    )
    return _answer("sitting", list(models.values()), share)


def _conditions(machine: dict[str, Any], sittings: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the machine before, and the worst of all sittings."""
    worst = {}
    for name in sittings[0]["conditions"]:
        known = [each["conditions"][name] for each in sittings]
        worst[name] = max((each for each in known if each is not None), default=None)
    found = {**machine, **worst, "settled": all(each["settled"] for each in sittings)}
    return {**found, "warning": "; ".join(warnings_of(found)) or None}


def _latencies(nanoseconds: np.ndarray) -> dict[str, float]:
    milliseconds = nanoseconds / _NANOSECONDS_PER_MILLISECOND
    return {
        "p50": float(np.percentile(milliseconds, 50)),
        "p90": float(np.percentile(milliseconds, 90)),
        "p99": float(np.percentile(milliseconds, 99)),
        "mean": float(np.mean(milliseconds)),
    }


def _peak_memory_mb(model: Path, settings: MeasureSettings) -> float:
    """In 10^6 bytes, where no other model has been."""
    return _answer("peak_memory", [model], settings)["bytes"] / 1e6


def _answer(program: str, models: list[Path], settings: MeasureSettings) -> dict[str, Any]:
    """What one of the programs in this folder answers, in a fresh process."""
    folder = str(Path(__file__).resolve().parents[2])
    search = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", f"lowrank.devices.{program}", *map(str, models),
         json.dumps(dataclasses.asdict(settings))],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
    )  # fmt: skip
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise DeviceError(
            f"{' and '.join(map(str, models))}: the process that measures ended with status "
            f"{result.returncode} ({last}). If the machine was short of memory, free some and "
            "measure again."
        )
    answer = json.loads(result.stdout)
    if "error" in answer:
        raise DeviceError(answer["error"])
    return answer
