"""The folder `int8/` of a network: one ONNX file for each kind of hardware, and `report.json`.

The report maps each device to its file (`devices`), and each file (`files`) to its types, accuracy
and size. `times.json` holds what nodes take in float and in int8, where that was measured. The
first device of the matrix names the main file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.devices.processor import Processor, integer_types
from lowrank.errors import UserError
from lowrank.files import read_json, written_whole

REPORT = "report.json"
TIMES = "times.json"


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of a folder. Raises UserError where an earlier version wrote it."""
    path = folder / REPORT
    report = read_json(path)
    if report.get("kind") and "files" not in report:
        raise UserError(
            f"{path}: written by an earlier version of lowrank, which made one int8 file for all "
            f"devices. Delete {folder} and run the same command again."
        )
    return report


def file_for(folder: Path, device: str) -> Path:
    """The int8 file that a device runs. Raises UserError where there is none."""
    devices = read_report(folder).get("devices", {})
    if device not in devices:
        raise UserError(
            f"{folder / REPORT}: it names no int8 file for the device '{device}', only for "
            f"{', '.join(devices) or 'none'}. List the device under `matrix.devices` in "
            "params.yaml and run the same command again."
        )
    return folder / devices[device]


def all_files(folder: Path) -> list[Path]:
    """Every int8 file of a folder; the main one, of the first device, first."""
    return [folder / name for name in read_report(folder)["files"]]


def copy_folder(source: Path, folder: Path) -> None:
    """Copy the int8 files of a folder, their times and report, each whole, the report last."""
    times = source / TIMES
    for path in [*all_files(source), *([times] if times.exists() else []), source / REPORT]:
        with written_whole(folder / path.name) as partial:
            shutil.copyfile(path, partial)


def main_record(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of the main file."""
    return next(iter(report["files"].values()))


def accuracy_of(accuracy: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return an int8 file's accuracy on both splits, top-5 where there are over ten classes."""
    top5 = {}
    if "top5" in accuracy["test"]:
        top5 = {
            "top5": {
                "exported": accuracy["test"]["top5"],
                "validation": {"exported": accuracy["validation"]["top5"]},
            }
        }
    return {
        "exported": accuracy["test"]["top1"],
        "validation": {"exported": accuracy["validation"]["top1"]},
        **top5,
    }


def runs_here(path: Path) -> bool:
    """Whether this machine's processor computes an int8 file of a folder without saturation.

    Where not, its answers elsewhere are those of float kernels between its conversions.
    """
    types = read_report(path.parent)["files"][path.name]
    here = integer_types(Processor.here())
    return types["reduce_range"] or not here.reduce_range
