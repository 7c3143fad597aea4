"""Check that a device keeps the contract of `lowrank.devices.Device`."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from lowrank.devices import Device, DeviceError, MeasureSettings, NodeTime
from lowrank.devices.answers import LARGEST_FLOAT_ERROR, answers
from lowrank.devices.processor import Processor
from lowrank.devices.runtime import load_runner
from lowrank.testing.contract import Check, require

_QUICK = {
    "sittings": 1,
    "turn_runs": 5,
    "repeats": 12,
    "seconds": 0.3,
    "warmup_seconds": 0.05,
    "energy_seconds": 0,
}
# Factor by which two measurements of the same thing may differ on a busy machine.
_BUSY = 5
_MODELS = ("original", "compressed")
_OUTPUTS = 5
_PIXELS = 32
# The compressed model has an eighth of the channels, and so about 1/8 of the weights and MACs.
_CHANNELS = {"original": 256, "compressed": 32}
# Bytes of the weights of the linear layer, nearly all of the model.
_WEIGHT_BYTES = {name: channels * _PIXELS**2 * _OUTPUTS * 4 for name, channels in _CHANNELS.items()}


def check_device(device: Device, *, expected_failures: Mapping[str, str] | None = None) -> None:
    """Check that a device keeps its contract, with two small models.

    The latency of the models must differ clearly, so the device should not be busy. Files that the
    device keeps elsewhere are removed by its method `clean`, if it has one.

    Parameters
    ----------
    device
        Device to check.
    expected_failures
        Checks that this device cannot pass, by their name, with the reason.

    Raises
    ------
    AssertionError
        With a line for each thing that is wrong: what was called, what was found, and what was
        expected. Also for a check that is expected to fail and passes.
    """
    with tempfile.TemporaryDirectory() as folder:
        models = {name: _save_model(Path(folder) / f"{name}.onnx", name) for name in _MODELS}
        sample = _Sample(device, Path(folder), models)
        require(f"device '{device.name}'", CHECKS, sample, expected_failures)


@dataclass(frozen=True)
class _Sample:
    """A device, and two models in a folder that contains nothing else."""

    device: Device
    folder: Path
    models: dict[str, Path]

    @property
    def original(self) -> Path:
        return self.models["original"]

    @cached_property
    def measured(self) -> dict[str, Any]:
        """A measurement of both models."""
        return self.device.measure(self.original, self.models["compressed"], _QUICK)

    @cached_property
    def nodes(self) -> dict[str, NodeTime]:
        """The times of the nodes of the original."""
        return self.device.node_times(self.original, _QUICK)

    @contextlib.contextmanager
    def file(self, name: str, content: bytes) -> Iterator[Path]:
        """Provide another file beside the models inside the block."""
        path = self.folder / name
        path.write_bytes(content)
        try:
            yield path
        finally:
            path.unlink()

    @contextlib.contextmanager
    def images(self, count: int, pixels: int = _PIXELS) -> Iterator[Path]:
        """Provide a file of random images inside the block."""
        path = self.folder / "images.npy"
        generator = np.random.default_rng(1)
        np.save(path, generator.standard_normal((count, 3, pixels, pixels), dtype=np.float32))
        try:
            yield path
        finally:
            path.unlink()


def _save_model(path: Path, name: str) -> Path:
    """Save a convolution and a linear layer. Only the batch dimension is free."""
    channels, generator = _CHANNELS[name], np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "kernel": generator.standard_normal((channels, 3, 3, 3), dtype=np.float32) / 5,
        "matrix": generator.standard_normal((channels * _PIXELS**2, _OUTPUTS), dtype=np.float32),
    }
    # ONNX Runtime names some nodes of the optimized graph after their outputs.
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["conv"], ["flatten"], "flatten"),
        helper.make_node("Gemm", ["flatten", "matrix"], ["gemm"], "gemm"),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(title, TensorProto.FLOAT, ["batch", *shape])]
        for title, shape in (("images", (3, _PIXELS, _PIXELS)), ("gemm", (_OUTPUTS,)))
    )
    weights = [numpy_helper.from_array(tensor, title) for title, tensor in tensors.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def _missing(found: Mapping[str, Any], expected: set[str], call: str) -> Iterator[str]:
    if absent := sorted(expected - found.keys()):
        yield f"{call} has no {', '.join(absent)}; found {', '.join(sorted(found)) or 'nothing'}"


def _name(sample: _Sample) -> Iterator[str]:
    name = sample.device.name
    if not isinstance(name, str) or not name:
        yield f"`name` is {name!r}; expected the user's name for the device"


def _measurement(sample: _Sample) -> Iterator[str]:
    measured = sample.measured
    keys = {*_MODELS, "speedup", "speedup_low", "speedup_high", "repeats", "memory_mb"}
    keys |= {"environment", "conditions", "energy_mj"}
    yield from _missing(measured, keys, "measure(...)")
    for name in _MODELS:
        latency = measured[name]
        yield from _missing(latency, {"p50", "p90", "p99", "mean"}, f"measure(...)['{name}']")
        if not 0 < latency["p50"] <= latency["p90"] <= latency["p99"] < math.inf:
            yield f"the latencies of '{name}' are {latency}; expected 0 < p50 <= p90 <= p99"
    if not measured["repeats"] >= _QUICK["repeats"]:
        yield f"`repeats` is {measured['repeats']}; expected at least {_QUICK['repeats']}"
    yield from _missing(measured["conditions"], {"warning"}, "measure(...)['conditions']")
    environment = sample.device.environment(_QUICK)
    if measured["environment"] != environment:
        yield (
            f"measure(...)['environment'] is {measured['environment']}; expected the result of "
            f"environment(settings), {environment}"
        )


def _ratios(sample: _Sample) -> Iterator[str]:
    measured = sample.measured
    speedup, low, high = (measured[f"speedup{end}"] for end in ("", "_low", "_high"))
    ratio = measured["original"]["p50"] / measured["compressed"]["p50"]
    if not low <= speedup <= high:
        yield f"`speedup` is {speedup:.3g}, outside of its interval, {low:.3g} to {high:.3g}"
    if not 1 < speedup < math.inf:
        yield (
            f"`speedup` is {speedup:.3g} for a model with an eighth of the MACs; expected above 1, "
            "as it is original / compressed"
        )
    if not 1 / _BUSY < speedup / ratio < _BUSY:
        yield (
            f"`speedup` is {speedup:.3g}, but the quotient of the median latencies is {ratio:.3g}; "
            "expected similar values"
        )


def _units(sample: _Sample) -> Iterator[str]:
    """The sum over nodes and the latency of the model must have one unit, and so on."""
    total = sum(node.milliseconds for node in sample.nodes.values())
    latency = sample.measured["original"]["p50"]
    if not 1 / _BUSY < total / latency < _BUSY:
        yield (
            f"the times of the nodes add up to {total:.3g}, and the median latency is "
            f"{latency:.3g}; expected similar values, both in ms"
        )
    for name in _MODELS:
        memory, weights = sample.measured["memory_mb"][name], _WEIGHT_BYTES[name] / 1e6
        if not weights / 4 < memory < 1000:
            yield (
                f"`memory_mb` of '{name}' is {memory:.3g}; expected more than its {weights:.3g} MB "
                "of weights, in 10^6 bytes"
            )


def _energy(sample: _Sample) -> Iterator[str]:
    energy = sample.measured["energy_mj"]
    yield from _missing(energy, {*_MODELS}, "measure(...)['energy_mj']")
    if all(energy.get(name) is None for name in _MODELS):
        if not energy.get("not_measured"):
            yield f"`energy_mj` is {energy}; expected `not_measured` with the reason"
    elif not all(energy[name] >= 0 for name in _MODELS):
        yield f"`energy_mj` is {energy}; expected no value below 0"


def _document(sample: _Sample) -> Iterator[str]:
    """A measurement is stored as JSON, and names no place of this machine."""
    text = json.dumps(sample.measured, allow_nan=False)
    if str(sample.folder) in text or ".onnx" in text:
        yield "measure(...) has a path of a model; expected a measurement without paths"


def _noise(sample: _Sample) -> Iterator[str]:
    for batch_size in (1, 3):
        settings = {"batch_size": batch_size}
        runner = load_runner(sample.original, MeasureSettings(batch_size=batch_size))
        found = np.array(sample.device.outputs(sample.original, settings))
        yield from _differences(found, runner()[0], f"outputs(model, {settings})")


def _images(sample: _Sample) -> Iterator[str]:
    with sample.images(5) as images:
        for batch_size in (1, 2):
            settings = MeasureSettings(batch_size=batch_size)
            expected = np.array(answers(sample.original, images, settings))
            entries = {"batch_size": batch_size}
            found = np.array(sample.device.answers(sample.original, images, entries))
            yield from _differences(found, expected, f"answers(model, 5 images, {entries})")


def _differences(found: np.ndarray, expected: np.ndarray, call: str) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"{call} has the shape {found.shape}; expected {expected.shape}"
        return
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    if not error <= LARGEST_FLOAT_ERROR:
        yield (
            f"{call} differs from the outputs of ONNX Runtime on this machine by {error:.2g} of "
            f"their norm; expected at most {LARGEST_FLOAT_ERROR:g}"
        )


def _nodes(sample: _Sample) -> Iterator[str]:
    yield from _missing(sample.nodes, {"conv", "gemm"}, "node_times(...)")
    for name, node in sample.nodes.items():
        if not isinstance(node, NodeTime) or not 0 < node.milliseconds < math.inf:
            yield f"node_times(...)['{name}'] is {node!r}; expected a NodeTime above 0 ms"


def _int8(sample: _Sample) -> Iterator[str]:
    reason = sample.device.lacks_int8(sample.original, _QUICK)
    if reason is not None:
        yield f"lacks_int8(...) of a model in float is {reason!r}; expected None"


def _description(sample: _Sample) -> Iterator[str]:
    described = sample.device.describe(_QUICK)
    expected = {*Processor.here().to_json(), "runtime", "runtime_version"}
    yield from _missing(described, expected, "describe(...)")
    Processor.from_json(described)
    if (again := sample.device.describe(_QUICK)) != described:
        yield f"describe(...) is {described}, then {again}; expected the same result each time"


def _environment(sample: _Sample) -> Iterator[str]:
    environment = sample.device.environment({"threads": 2})
    keys = {"runtime", "runtime_version", "threads", "cpu", "machine"}
    yield from _missing(environment, keys, "environment(...)")
    json.dumps(environment, allow_nan=False)
    if environment["threads"] != 2:
        yield (
            f"environment({{'threads': 2}}) has {environment['threads']} threads; expected 2, as "
            "the settings of a measurement override those of the device"
        )


def _errors(sample: _Sample) -> Iterator[str]:
    device, original, absent = sample.device, sample.original, sample.folder / "absent.onnx"
    with (
        sample.file("damaged.onnx", original.read_bytes()[:-1000]) as damaged,
        sample.images(2) as images,
    ):
        calls: dict[str, Callable[[Path], Any]] = {
            "measure": lambda model: device.measure(original, model, _QUICK),
            "outputs": lambda model: device.outputs(model, _QUICK),
            "answers": lambda model: device.answers(model, images, _QUICK),
            "node_times": lambda model: device.node_times(model, _QUICK),
            "lacks_int8": lambda model: device.lacks_int8(model, _QUICK),
        }
        for name, call in calls.items():
            for model, kind in ((absent, "missing"), (damaged, "damaged")):
                title = f"{name}(...) of a {kind} model"
                yield from _not_refused(partial(call, model), title, model.name)
    with sample.images(2, _PIXELS // 2) as images:
        yield from _not_refused(
            lambda: device.answers(original, images, _QUICK), "answers(...) of smaller images", ""
        )
    yield from _not_refused(
        lambda: device.environment({"speed": 1}), "environment({'speed': 1})", "speed"
    )


def _not_refused(call: Callable[[], Any], title: str, named: str) -> Iterator[str]:
    """Yield what is wrong with the DeviceError that a call must raise. It must name something."""
    try:
        result = call()
    except DeviceError as error:
        if named not in str(error):
            yield f"the error of {title} is {str(error)!r}; expected a message that names {named}"
    except Exception as error:
        yield f"{title} raises {type(error).__name__}: {error}; expected a DeviceError"
    else:
        yield f"{title} returns {str(result)[:80]}; expected a DeviceError"


def _nothing_left(sample: _Sample) -> Iterator[str]:
    """Files and processes are the same before and after all calls."""
    before = {path.name: path.read_bytes() for path in sample.folder.iterdir()}
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with tempfile.TemporaryDirectory() as here, contextlib.chdir(here), sample.images(2) as images:
        sample.device.measure(sample.original, sample.models["compressed"], _QUICK)
        sample.device.answers(sample.original, images, _QUICK)
        sample.device.node_times(sample.original, _QUICK)
        if left := sorted(path.name for path in Path(here).iterdir()):
            yield f"the current folder has new files: {', '.join(left)}; expected none"
    after = {path.name: path.read_bytes() for path in sample.folder.iterdir()}
    if changed := sorted({name for name, _ in before.items() ^ after.items()}):
        yield f"the folder of the models has changed files: {', '.join(changed)}; expected none"
    left_children = [
        child.name()
        for child in psutil.Process().children(recursive=True)
        if child.pid not in children
    ]
    if left_children:
        yield f"processes still run: {', '.join(left_children)}; expected none"


def _cleaning(sample: _Sample) -> Iterator[str]:
    """A device that keeps files elsewhere removes them."""
    clean = getattr(sample.device, "clean", None)
    if clean is None:
        return
    sample.device.node_times(sample.original, _QUICK)
    report = clean()
    yield from _missing(report, {"folder", "removed", "stay"}, "clean()")
    if not report["removed"] > 0:
        yield "clean() after a measurement has removed 0 files; expected those that were sent"
    if (again := clean())["removed"]:
        yield f"a second clean() has removed {again['removed']} files; expected 0"


#: The checks by name. Each one yields what is wrong, without a full stop.
CHECKS: dict[str, Check[_Sample]] = {
    "name": _name,
    "measurement": _measurement,
    "ratios": _ratios,
    "units": _units,
    "energy": _energy,
    "document": _document,
    "noise": _noise,
    "images": _images,
    "nodes": _nodes,
    "int8": _int8,
    "description": _description,
    "environment": _environment,
    "errors": _errors,
    "nothing_left": _nothing_left,
    "cleaning": _cleaning,
}
