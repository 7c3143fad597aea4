"""Latencies of single layers on a device, with a cache on disk."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from lowrank.core.layers import Pair, PlainLayer
from lowrank.devices import Device, DeviceError
from lowrank.files import read_json, write_json
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.single_layers import side_by_side

# Maximum number of convolutions in one measured model, and the maximum bytes of their weights. A
# compressed network has about as many, so the caches are filled to a similar degree.
_MAX_LAYERS = 40
_MAX_BYTES = 4_000_000


class MeasuredLayers:
    """Latencies of plain layers, measured on demand and cached by device and runtime."""

    def __init__(self, device: Device, settings: dict[str, Any], form: Form, cache: Path) -> None:
        self._device, self._settings, self._form, self._path = device, settings, form, cache
        environment = sorted(device.environment(settings).items())
        # The optimization level determines the kernels. The environment includes the processor.
        relevant = {name: settings.get(name) for name in ("batch_size", "optimization")}
        self._key = str([*environment, *sorted(relevant.items()), str(form)])
        self._known = read_json(cache) if cache.exists() else {}
        self.count = 0

    def __call__(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        """Return the milliseconds of each layer for its input map."""
        known = self._known.setdefault(self._key, {})
        missing = [layer for layer in dict.fromkeys(layers) if str(layer) not in known]
        for batch in _batches(missing, self._form.bytes_per_weight):
            known |= {str(layer): ms for layer, ms in zip(batch, self._measure(batch), strict=True)}
            remember(self._path, self._key, known)
        self.count += len(missing)
        return [known[str(layer)] for layer in layers]

    def _measure(self, layers: Sequence[tuple[PlainLayer, Pair]]) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "layers.onnx"
            onnx.save(side_by_side(layers, self._settings["batch_size"]), model)
            with self._form.of(model) as formed:
                nodes = self._device.node_times(formed, self._settings)
        names = [f"layer{index}" for index in range(len(layers))]
        if missing := [name for name in names if name not in nodes]:
            raise DeviceError(
                f"the profile of the runtime names the nodes {', '.join(nodes)}, but not "
                f"{', '.join(missing)}, so the latencies of single layers are not known. Remove "
                "the target of latency for this device, or set another `runtime`."
            )
        return [nodes[name].milliseconds for name in names]


def remember(path: Path, key: str, milliseconds: dict[str, float]) -> None:
    """Add measurements to a cache file. Several jobs may add to it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The operating system releases the lock when its process ends.
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_json(path) if path.exists() else {}
        known[key] = known.get(key, {}) | milliseconds
        write_json(path, known)


def _batches(
    layers: Sequence[tuple[PlainLayer, Pair]], bytes_per_weight: int
) -> Iterator[list[tuple[PlainLayer, Pair]]]:
    """Divide layers into batches for one model each. A layer above the limit gets its own model."""
    batch: list[tuple[PlainLayer, Pair]] = []
    batch_bytes = 0
    for layer, input_map in layers:
        layer_bytes = bytes_per_weight * layer.parameters
        if batch and (len(batch) == _MAX_LAYERS or batch_bytes + layer_bytes > _MAX_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append((layer, input_map))
        batch_bytes += layer_bytes
    if batch:
        yield batch
