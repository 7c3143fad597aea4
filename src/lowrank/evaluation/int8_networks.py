"""Write the int8 files of a network, one for each kind of hardware, and measure them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from lowrank.config.device_kinds import create_device
from lowrank.config.quantize import QuantizeSettings
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import Dataset, Split
from lowrank.devices import DeviceError
from lowrank.devices.processor import IntegerTypes, Processor, integer_types
from lowrank.evaluation.exported import ExportedNetworks
from lowrank.evaluation.session_run import fed
from lowrank.onnx_files.int8 import Quantizer
from lowrank.onnx_files.int8_search import Kept, ToleranceSearch
from lowrank.onnx_files.int8_times import measure
from lowrank.onnx_networks.fixed_sizes import write_fixed
from lowrank.onnx_networks.model_file import fixed_batch, inputs_of
from lowrank.zoo.registry import NetworkSpec

Say = Callable[[str], object]


class _Inputs(Sequence[Mapping[str, Any]]):
    """The samples of a split as inputs of an ONNX file, a batch at a time.

    A file with a fixed batch size gets batches of that size; samples that do not fill one are left
    out.
    """

    def __init__(self, split: Split, spec: NetworkSpec, model: Path) -> None:
        entries = inputs_of(onnx.load(model, load_external_data=False))
        self._names, self._spec = [entry.name for entry in entries], spec
        size = fixed_batch(entries)
        step = size or max(len(split), 1)
        rows = [split.rows[start : start + step] for start in range(0, len(split), step)]
        self._parts = [
            EvaluationBatches(replace(split, rows=part), spec)
            for part in rows
            if not size or len(part) == size
        ]
        self._numbers = [(part, number) for part in self._parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        part, number = self._numbers[index]
        return fed(part[number][0], self._names, self._spec)


@dataclass
class Int8Networks:
    """The int8 files of one network, with the measurements of the network in float.

    Parameters
    ----------
    model
        The network in float, ONNX.
    in_runtime
        Measurement of ONNX files.
    data
        The dataset. Activation ranges come from its calibration images, metrics from its validation
        and test images.
    settings
        Settings under `quantize` in params.yaml.
    intermediate
        Empty folder for intermediate files.
    say
        Prints a line of progress.
    sizes
        Sizes of each input without the batch axis, if the network leaves sizes open; see
        `NetworkSpec.sizes`.
    files
        Record of each file that was written, by its name.
    times
        Latencies of nodes by the name of a file. Only with `settings.by_time`.
    """

    model: Path
    in_runtime: ExportedNetworks
    data: Dataset
    settings: QuantizeSettings
    intermediate: Path
    say: Say
    sizes: Mapping[str, Sequence[int]] | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sample: Split = self.data.validation.sample(self.settings.sensitivity_images)
        self._in_float: Any = self.in_runtime.outputs(self.model, self._sample)
        #: Metrics of the network in float on the validation images.
        self.before = self.in_runtime.values(self.model, self.data.validation)
        inputs = _Inputs(
            self.data.calibration.sample(self.settings.images), self.in_runtime.spec, self.model
        )
        self._quantizer = Quantizer(self.model, inputs, self.settings, self.intermediate)

    def write_all(
        self,
        types: dict[str, IntegerTypes],
        connections: Mapping[str, dict[str, Any]],
        folder: Path,
    ) -> None:
        """Write a file for each kind of hardware, and add to `files` and `times`.

        The first device of each kind of hardware is timed, to find nodes that are slower in int8.

        Parameters
        ----------
        types
            Integer types of each device.
        connections
            Connection to each device that can be timed.
        folder
            Folder of the files.
        """
        device_of = {int8_types: device for device, int8_types in reversed(types.items())}
        for int8_types in dict.fromkeys(types.values()):
            slow: tuple[str, ...] = ()
            if self.settings.by_time:
                device = device_of[int8_types]
                times = self._node_times(int8_types, device, connections.get(device))
                self.times[int8_types.file] = times
                slow = tuple(times.get("kept_in_float", ()))
            self.files[int8_types.file] = self._write(int8_types, folder, slow)

    def _as_timed(self, path: Path) -> Path:
        """Return a copy with fixed sizes if the file leaves sizes open, which devices refuse."""
        if self.sizes is None:
            return path
        return write_fixed(path, path.with_name(f"{path.stem}_fixed.onnx"), self.sizes)

    def document(self, types: Mapping[str, IntegerTypes]) -> dict[str, Any]:
        """Return the report: the file of each device, and the record of each file."""
        return {
            "devices": {device: of_device.file for device, of_device in types.items()},
            "files": self.files,
            "float_accuracy": {"validation": self.before},
        }

    def _node_times(
        self, types: IntegerTypes, device: str, connection: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Measure which nodes a device runs slower in int8 than in float, and report them."""
        if connection is None:
            return {"device": device, "not_measured": "the connection to the device is not known"}
        all_int8, mixed = self.intermediate / "all.onnx", self.intermediate / "mixed.onnx"

        def write(kept: Sequence[str]) -> Path:
            self._quantizer.write(mixed, types, but=kept)
            return self._as_timed(mixed)

        self._quantizer.write(all_int8, types)
        try:
            machine = create_device(device, connection)
        except DeviceError as error:
            return {"device": device, "not_measured": str(error)}
        times = measure(machine, self._as_timed(self.model), self._as_timed(all_int8), write)
        if reason := times.get("not_measured"):
            self.say(f"warning: {device}: nodes are not timed and stay in int8: {reason}")
        elif measured := times["whole"]:
            outcome = "they are kept in float" if times["kept_in_float"] else "they stay in int8"
            self.say(
                f"{device}: slower in int8 than in float: {', '.join(times['candidates'])}. A file "
                f"with these nodes in float has {measured['speedup']:.2f} times the speed of the "
                f"file with all nodes in int8 ({measured['speedup_low']:.2f} to "
                f"{measured['speedup_high']:.2f}): {outcome}"
            )
        else:
            self.say(
                f"{device}: none of {len(times['nodes'])} nodes is slower in int8 than in float"
            )
        return times

    def _write(self, types: IntegerTypes, folder: Path, slow: tuple[str, ...]) -> dict[str, Any]:
        """Write the file with these types and with `slow` nodes in float, and return its record."""
        settings, data, task = self.settings, self.data, self.in_runtime.task
        metric = task.metric
        # If products saturate on this machine but not on the device, use float kernels between the
        # conversions. They compute the same outputs as the device.
        saturates = integer_types(Processor.here()).reduce_range and not types.reduce_range
        in_runtime = replace(self.in_runtime, float_kernels=saturates)

        def lost(path: Path) -> float:
            values = in_runtime.values(path, data.validation)
            return metric.loss(self.before[metric.key], values[metric.key])

        def divergence(path: Path) -> float:
            return float(task.divergence(in_runtime.outputs(path, self._sample), self._in_float))

        output = folder / types.file
        kept = ToleranceSearch(
            self._quantizer,
            lost=lost,
            divergence=divergence,
            unit=metric.difference_unit,
            tolerance=settings.tolerance,
            types=types,
            seconds=settings.search_seconds,
            but=slow,
            say=self.say,
        ).write(output)
        validation = in_runtime.values(output, data.validation)
        test = in_runtime.values(output, data.test) if task.depends_on_split else validation
        accuracy = {"validation": validation, "test": test}
        return self._record(types, output, accuracy, kept, slow)

    def _record(
        self,
        types: IntegerTypes,
        output: Path,
        accuracy: dict[str, dict[str, float]],
        kept: Kept,
        slow: tuple[str, ...],
    ) -> dict[str, Any]:
        """Return the record of a file for the report, and report its main figures as progress."""
        size, nodes = output.stat().st_size, len(self._quantizer.nodes)
        in_float, metric = [*slow, *kept.nodes], self.in_runtime.task.metric
        validation, before, test = (
            metric.text(values[metric.key])
            for values in (accuracy["validation"], self.before, accuracy["test"])
        )
        self.say(
            f"{types.file}: {metric.noun} {validation} on the validation split (float: {before}), "
            f"{test} on the test split, {size / 1e6:.2f} MB, {len(in_float)} of {nodes} nodes in "
            "float"
        )
        return {
            "activations": types.activations,
            "reduce_range": types.reduce_range,
            "accuracy": accuracy,
            "size_bytes": size,
            "nodes": nodes,
            "kept_in_float": in_float,
            "slower_in_int8": list(slow),
            "within_tolerance": kept.within,
        }
