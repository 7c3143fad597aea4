"""How long each node of a model takes, by ONNX Runtime's own profile."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowrank.devices.device import MeasureSettings, NodeTime
from lowrank.devices.runtime import open_session, warm_up

if TYPE_CHECKING:
    import onnxruntime

# A node takes at least this, whatever the correction of its time says, in µs.
_LEAST = 0.05


def node_times(model: Path, settings: MeasureSettings) -> dict[str, NodeTime]:
    """The mean time of each node of a model, without the slowest tenth of the runs.

    Writing the profile lengthens each node by some microseconds, which for small ones is most of
    what it shows. So the model is timed without it, too, and what the profile adds in all is taken
    from every node alike: together they take what the model takes.

    Parameters
    ----------
    model : Path
        An ONNX model whose inputs have fixed shapes, but for a batch that may be free.
    settings : MeasureSettings
        How often and how long to run it, each with the profile and without.

    Returns
    -------
    dict
        By the name of the node, as the optimized graph has it: nodes that were fused have one.

    Raises
    ------
    DeviceError
        As `lowrank.devices.runtime.load_runner` does.
    """
    whole = _typical(_run(open_session(model, settings), settings))
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, settings, profile=Path(folder) / "profile")
        runs = len(_run(session, settings))
        events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            durations[_node_name(event["name"]), operator].append(event["dur"])
    nodes = list(durations)
    profiled = np.array([_typical(durations[node][-runs:]) for node in nodes])
    return {
        name: NodeTime(operator, float(microseconds) / 1e3)
        for (name, operator), microseconds in zip(  # noqa: B905  (`strict` is Python 3.10's)
            nodes, without_profiling(profiled, whole)
        )
    }


def without_profiling(profiled: np.ndarray, whole: float) -> np.ndarray:
    """What nodes take when no profile is written, in the unit of the arguments.

    Parameters
    ----------
    profiled : array, (nodes,)
        What the profile shows of each.
    whole : float
        What the model takes without it.
    """
    return np.maximum(profiled - (profiled.sum() - whole) / max(len(profiled), 1), _LEAST)


def _run(session: onnxruntime.InferenceSession, settings: MeasureSettings) -> list[float]:
    """Microseconds of each run after warming up, on fixed normal noise."""
    generator = np.random.default_rng(0)
    feed = {
        each.name: generator.standard_normal(
            [size if isinstance(size, int) else settings.batch_size for size in each.shape],
            dtype=np.float32,
        )
        for each in session.get_inputs()
    }
    warm_up(lambda: session.run(None, feed), seconds=settings.warmup_seconds)
    found: list[float] = []
    end = time.perf_counter() + settings.seconds
    while len(found) < settings.repeats or time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, feed)
        found.append((time.perf_counter_ns() - start) / 1e3)
    return found


def _node_name(event: str) -> str:
    """Without what ONNX Runtime puts behind it where it makes a node of another."""
    return re.sub(r"(_nchwc|_token_\d+)?_kernel_time$", "", event)


def _typical(microseconds: list[float]) -> float:
    """The mean of all but the slowest tenth: the clock's whole microseconds average out."""
    return float(np.mean(np.sort(microseconds)[: max(1, int(0.9 * len(microseconds)))]))
