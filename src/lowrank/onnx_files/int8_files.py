"""Read the folder `int8/` of a network: one ONNX file per kind of hardware, and `report.json`.

The report maps each device to its file (`devices`), and each file to its types, metrics and size
(`files`). If node latencies were measured, `times.json` holds them for float and int8. The file of
the first device of the matrix is the main file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.core.metric import Metric
from lowrank.devices.processor import Processor, integer_types
from lowrank.errors import UserError
from lowrank.files import read_json, written_whole

REPORT = "report.json"
TIMES = "times.json"


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of a folder. Raises UserError if an earlier version wrote it."""
    path = folder / REPORT
    report = read_json(path)
    if report.get("kind") and "files" not in report:
        raise UserError(
            f"{path}: written by an earlier version of lowrank, with one int8 file for all "
            f"devices. Delete {folder} and run the same command again."
        )
    return report


def file_for(folder: Path, device: str) -> Path:
    """Return the int8 file for a device. Raises UserError if there is none."""
    devices = read_report(folder).get("devices", {})
    if device not in devices:
        raise UserError(
            f"{folder / REPORT}: has no int8 file for the device '{device}', only for "
            f"{', '.join(devices) or 'none'}. Add the device to `matrix.devices` in params.yaml "
            "and run the same command again."
        )
    return folder / devices[device]


def all_files(folder: Path) -> list[Path]:
    """Return all int8 files of a folder, the main file first."""
    return [folder / name for name in read_report(folder)["files"]]


def copy_folder(source: Path, folder: Path) -> None:
    """Copy the int8 files of a folder, their times and, last, their report; each atomically."""
    times = source / TIMES
    for path in [*all_files(source), *([times] if times.exists() else []), source / REPORT]:
        with written_whole(folder / path.name) as partial:
            shutil.copyfile(path, partial)


def main_record(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of the main file in a report."""
    return next(iter(report["files"].values()))


def accuracy_of(accuracy: Mapping[str, Mapping[str, float]], metric: Metric) -> dict[str, Any]:
    """Return an int8 file's metrics on both splits; `metric` is the main metric of its task."""

    def on_both(key: str) -> dict[str, Any]:
        return {
            "exported": accuracy["test"][key],
            "validation": {"exported": accuracy["validation"][key]},
        }

    others = {key: on_both(key) for key in accuracy["test"] if key != metric.key}
    return on_both(metric.key) | others


def runs_here(path: Path) -> bool:
    """Return whether the processor of this machine runs an int8 file without saturation.

    If not, float kernels between the conversions compute the outputs that other devices compute.
    """
    types = read_report(path.parent)["files"][path.name]
    local_types = integer_types(Processor.here())
    return types["reduce_range"] or not local_types.reduce_range
