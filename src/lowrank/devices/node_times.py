"""How long each node of a model takes, by ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from lowrank.devices.base import MeasureSettings, NodeTime
from lowrank.devices.runtime import open_session, warm_up


def node_times(model: Path, settings: MeasureSettings) -> dict[str, NodeTime]:
    """The mean time of each node of a model, without the slowest tenth of the runs.

    Parameters
    ----------
    model : Path
        An ONNX model whose inputs have fixed shapes, but for a batch that may be free.
    settings : MeasureSettings
        How often and how long to run it.

    Returns
    -------
    dict
        By the name of the node, as the optimized graph has it: nodes that were fused have one.

    Raises
    ------
    DeviceError
        As `lowrank.devices.runtime.load_runner` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, settings, profile=Path(folder) / "profile")
        generator = np.random.default_rng(0)
        feed = {
            each.name: generator.standard_normal(
                [size if isinstance(size, int) else settings.batch_size for size in each.shape],
                dtype=np.float32,
            )
            for each in session.get_inputs()
        }
        warm_up(lambda: session.run(None, feed), seconds=settings.warmup_seconds)
        runs, end = 0, time.perf_counter() + settings.seconds
        while runs < settings.repeats or time.perf_counter() < end:
            session.run(None, feed)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            durations[_node_name(event["name"]), operator].append(event["dur"])
    return {
        name: NodeTime(operator, _typical(each[-runs:]) / 1e3)
        for (name, operator), each in durations.items()
    }


def _node_name(event: str) -> str:
    """Without what ONNX Runtime puts behind it; `_nchwc` is a node that it made of another."""
    return event.removesuffix("_kernel_time").removesuffix("_nchwc")


def _typical(microseconds: list[float]) -> float:
    """The mean of all but the slowest tenth: the clock's whole microseconds average out."""
    kept = np.sort(microseconds)[: max(1, int(0.9 * len(microseconds)))]
    # They are rounded down.
    return float(np.mean(kept)) + 0.5
