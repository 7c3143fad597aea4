"""Measure the networks of one result on a device: latency, agreement of outputs, kernels.

PyTorch is imported only after the latencies are measured, so that its threads and memory cannot
affect them.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lowrank.core.layers import REST
from lowrank.devices import Device, MeasureSettings, combinations
from lowrank.devices.answers import agreement, expected_answers
from lowrank.devices.processor import Processor
from lowrank.devices.runtime import get_runtime
from lowrank.errors import UserError
from lowrank.evaluation.fastest_runtimes import add_fastest_runtimes
from lowrank.evaluation.measured_models import Models
from lowrank.files import read_json
from lowrank.onnx_files.kernels import integer_kernels, macs_of_nodes
from lowrank.onnx_files.node_layers import layers_of_nodes

# Number of test images whose outputs are compared. A wrong kernel affects each of them.
_COMPARED_IMAGES = 64

# Keys of the result of `_checked_int8`.
_CHECKED = ("agreement", "integer_kernels")

Say = Callable[[str], object]


@dataclass(frozen=True)
class DeviceMeasurements:
    """Measurements of the networks of one result on one device.

    Parameters
    ----------
    device
        The device.
    models
        The ONNX files to measure.
    settings
        Settings of the device in params.yaml, with a single value for each.
    say
        Prints a line of progress.
    """

    device: Device
    models: Models
    settings: dict[str, Any]
    say: Say

    @property
    def runtime(self) -> str:
        """Name of the runtime, as in params.yaml."""
        return MeasureSettings.of(self.settings).runtime

    def latencies(self, label: str = "") -> dict[str, Any]:
        """Measure the compressed network, its `int8` network and the `control`.

        The delivered network, in int8 if there is one, is also measured against the control.
        `label` precedes the progress.
        """
        models = self.models
        measured = self.device.measure(models.original, models.compressed, self.settings)
        self._say_speedup(measured, label)
        control = self._int8_latency(models.control, f"{label}original in int8: ")
        measured["control"] = {"int8": control}
        delivered = measured
        if models.quantized:
            delivered = measured["int8"] = (
                dict(control)
                if models.is_control
                else self._int8_latency(models.quantized, f"{label}int8: ")
            )
        if "not_measured" not in control and "not_measured" not in delivered:
            delivered |= self._against_control(label)
        return measured

    def _int8_latency(self, model: Path, label: str) -> dict[str, Any]:
        """Measure an int8 model against the original in float, or report why it is not measured."""
        if reason := self.device.lacks_int8(model, self.settings):
            self.say(f"{label}not measured: {reason}")
            return {"not_measured": reason}
        measured = self.device.measure(self.models.original, model, self.settings)
        self._say_speedup(measured, label)
        return {**measured, "file": model.name}

    def _against_control(self, label: str) -> dict[str, float]:
        """Measure the delivered network against the original in int8: the ratio and interval."""
        keys, models = ("speedup", "speedup_low", "speedup_high"), self.models
        if models.is_control:
            return {f"speedup_over_control{key.removeprefix('speedup')}": 1.0 for key in keys}
        # Energy is not counted again, because both were counted together with the original.
        measured = self.device.measure(
            models.control,
            models.quantized or models.compressed,
            self.settings | {"energy_seconds": 0},
        )
        self.say(
            f"{label}{measured['speedup']:.2f}x faster than the original in int8 "
            f"({measured['speedup_low']:.2f} to {measured['speedup_high']:.2f})"
        )
        return {f"speedup_over_control{key.removeprefix('speedup')}": measured[key] for key in keys}

    def check(self, measured: dict[str, Any], images: Path) -> None:
        """Add the `agreement` of each file, and the kernels that int8 files run in.

        `measured` is the result of `latencies`, `images` a .npy file of preprocessed images.
        """
        models = self.models
        measured["agreement"] = self._agreement(models.compressed, images)
        control = measured["control"]["int8"]
        if "not_measured" not in control:
            control |= self._checked_int8(models.control, models.original, images)
        if models.is_control:
            measured["int8"] |= {key: value for key, value in control.items() if key in _CHECKED}
        elif models.quantized and "not_measured" not in measured["int8"]:
            checks = self._checked_int8(models.quantized, models.compressed, images)
            measured["int8"] |= checks

    def _agreement(self, model: Path, images: Path, in_float: Path | None = None) -> dict[str, Any]:
        """Compare a device's outputs with the reference outputs of the file, computed here.

        For an int8 file, `in_float` is the same network in float.
        """
        measure_settings = MeasureSettings(batch_size=self.settings.get("batch_size", 1))
        comparison = agreement(
            self.device.answers(model, images, self.settings),
            expected_answers(model, images, measure_settings),
            expected_answers(in_float, images, measure_settings) if in_float else None,
            are_classes=_returns_classes(model),
            runtime=get_runtime(MeasureSettings.of(self.settings)).label,
        )
        if comparison["warning"]:
            self.say(f"warning: {self.device.name}: {model}: {comparison['warning']}")
        return comparison

    def _checked_int8(self, model: Path, in_float: Path, images: Path) -> dict[str, Any]:
        """Return `agreement` and `integer_kernels` of an int8 file.

        `in_float` is the same network in float, from which the MACs of nodes are counted.
        """
        once = self.settings | {"warmup_seconds": 0, "repeats": 1, "seconds": 0}
        counted = self.models.counted.get(in_float, in_float)
        kernels = integer_kernels(self.device.node_times(model, once), macs_of_nodes(counted))
        self.say(
            f"int8: {kernels['nodes']} of {kernels['total']} convolutions and matrix products, "
            f"{100 * kernels['macs_share']:.1f} % of the MACs, run as integer kernels"
        )
        if kernels["warning"]:
            self.say(f"warning: {self.device.name}: {model}: {kernels['warning']}")
        return {
            "agreement": self._agreement(model, images, in_float),
            "integer_kernels": kernels,
        }

    def milliseconds_by_layer(self, model: Path) -> dict[str, float]:
        """Return the milliseconds of each plain layer of a model, and of the rest."""
        layers, milliseconds = layers_of_nodes(model), {REST: 0.0}
        for node, time in self.device.node_times(model, self.settings).items():
            name = layers.get(node, REST)
            milliseconds[name] = milliseconds.get(name, 0.0) + time.milliseconds
        return milliseconds

    def _say_speedup(self, measured: dict[str, Any], label: str) -> None:
        self.say(
            f"{label}{measured['original']['p50']:.3f} ms -> "
            f"{measured['compressed']['p50']:.3f} ms at the median, {measured['speedup']:.2f}x "
            f"faster ({measured['speedup_low']:.2f} to {measured['speedup_high']:.2f}) over "
            f"{measured['repeats']} runs"
        )
        if warning := measured["conditions"]["warning"]:
            self.say(f"warning: {label}{warning}")


def _returns_classes(model: Path) -> bool:
    """Return whether a model returns one score for each class of an image."""
    outputs = onnx.load(model, load_external_data=False).graph.output
    return len(outputs) == 1 and len(outputs[0].type.tensor_type.shape.dim) == 2


def require_same_processor(device: Device, description: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if the processor of the device has changed since it was described."""
    before = Processor.from_json(read_json(description))
    now = Processor.from_json(device.describe(settings))
    if before != now:
        raise UserError(
            f"{description}: the device '{device.name}' is described as {before.cpu} "
            f"({before.architecture}), but it is {now.cpu} ({now.architecture}) now, or has other "
            "instructions. int8 files made for one processor may be slow or wrong on another. "
            "Delete that file and run the same command again. With DVC, run `dvc repro --force "
            f"--single-item describe_device@{device.name}` first."
        )


def measure_all(
    device: Device,
    models: Models,
    settings: dict[str, Any],
    *,
    dataset: Path,
    state: Path,
    say: Say,
    fixed_batch: bool = False,
) -> dict[str, Any]:
    """Measure the networks with each combination of a device's settings.

    Parameters
    ----------
    device, models, say
        As in `DeviceMeasurements`.
    settings
        Settings of the device in params.yaml. A setting can be a list of values.
    dataset, state
        Folder of the dataset and file of the original network, for the images whose outputs are
        compared.
    fixed_batch
        Measure twins of the files with a fixed batch axis.

    Returns
    -------
    dict
        Measurements with the first value of each setting, the milliseconds of each layer in
        `layers_ms`, and those with other values in `others`.

    Raises
    ------
    DeviceError
        If the device fails.
    """
    with ExitStack() as stack:

        def measured_models(combination: dict[str, Any]) -> Models:
            size = MeasureSettings.of(combination).batch_size if fixed_batch else None
            return stack.enter_context(models.with_batch(size))

        (_, measurements), *others = [
            (name, DeviceMeasurements(device, measured_models(combination), combination, say))
            for name, combination in combinations(settings).items()
        ]
        return _measure_each(measurements, others, dataset, state)


def _measure_each(
    measurements: DeviceMeasurements,
    others: list[tuple[str, DeviceMeasurements]],
    dataset: Path,
    state: Path,
) -> dict[str, Any]:
    """Measure with the main settings and with others by name; see `measure_all`."""
    measured = measurements.latencies()
    measured_others = {name: other.latencies(f"{name}: ") for name, other in others}
    # The main measurement of each runtime, whose outputs are compared, too.
    by_runtime = {measurements.runtime: (measurements, measured)}
    for name, other in others:
        by_runtime.setdefault(other.runtime, (other, measured_others[name]))
    with real_images(dataset, state) as images:
        for in_runtime, figures in by_runtime.values():
            in_runtime.check(figures, images)
    if len(by_runtime) > 1:
        add_fastest_runtimes({name: figures for name, (_, figures) in by_runtime.items()})
    models = measurements.models
    named = models.named or (models.original, models.compressed)
    measured["layers_ms"] = {
        name: measurements.milliseconds_by_layer(model)
        for name, model in zip(("original", "compressed"), named, strict=True)
    }
    if others:
        measured["others"] = measured_others
    return measured


@contextmanager
def real_images(dataset: Path, state: Path) -> Iterator[Path]:
    """Provide a temporary file of some preprocessed test samples inside the block.

    It is an .npy file, or an .npz file with an array for each of several inputs.
    """
    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.session_run import fed
    from lowrank.surgery.states import read_spec

    sample, spec = open_dataset(dataset).test.sample(_COMPARED_IMAGES), read_spec(state)
    batches = EvaluationBatches(sample, spec)
    names = [*spec.sizes]
    parts = [fed(batches[number][0], names, spec) for number in range(len(batches))]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("samples.npz" if len(arrays) > 1 else "images.npy")
        if len(arrays) > 1:
            _write_arrays(path, arrays)
        else:
            np.save(path, arrays[names[0]])
        yield path


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file. `numpy.savez` does not take all names, such as `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)
