"""Quantize an exported network to int8 for each kind of hardware, and measure the result."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lowrank.config.quantize import QuantizeSettings
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    output_path,
    parameter,
    task_option,
)


@click.command(cls=Step)
@task_option
@input_path("model", "The network, ONNX.")
@input_path("state", "The network that was exported, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_paths("devices", "Descriptions of the devices, the main device first.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path(
    "ready", "Folder that this step wrote for the same network; empty for none.", optional=True
)
@parameter("kind", "methods.<method>.quantize; empty to do nothing.", default="")
@parameter("settings", "quantize, JSON.", Json(QuantizeSettings))
@parameter("connections", "Connection of each device by its name, JSON.", Json(), default="{}")
@output_path("folder", "Folder of an ONNX file for each kind of hardware, and report.json.")
def quantize(
    task: str,
    model: Path,
    state: Path,
    dataset: Path,
    devices: list[Path],
    splits: Path | None,
    ready: Path | None,
    kind: str,
    settings: QuantizeSettings,
    connections: dict[str, dict[str, Any]],
    folder: Path,
) -> None:
    """Quantize an exported network to int8 for each kind of hardware, and measure the result."""
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.int8_files import REPORT, TIMES, copy_folder

    report = folder / REPORT
    if not kind:
        # DVC requires this output for every method, quantized or not.
        write_json(report, {"kind": None})
        return
    if ready:
        # The method does not change the network, and the original is already quantized.
        copy_folder(ready, folder)
        say(f"the network is the original: copied its int8 files from {ready}")
        return

    use_threads(settings.threads)
    from lowrank.data.datasets import open_dataset
    from lowrank.devices.processor import Processor
    from lowrank.evaluation.exported import ExportedNetworks
    from lowrank.evaluation.int8_networks import Int8Networks
    from lowrank.onnx_files.int8 import types_for
    from lowrank.surgery.states import read_spec
    from lowrank.tasks import get_task

    types = {
        path.stem: types_for(Processor.from_json(read_json(path)), settings) for path in devices
    }
    in_runtime = ExportedNetworks(get_task(task), read_spec(state), settings.threads)
    data = open_dataset(dataset, splits)
    with tempfile.TemporaryDirectory() as intermediate:
        networks = Int8Networks(model, in_runtime, data, settings, Path(intermediate), say)
        networks.write_all(types, connections, folder)
    if settings.by_time:
        write_json(folder / TIMES, networks.times)
    write_json(
        report,
        {
            "kind": kind,
            "devices": {device: int8_types.file for device, int8_types in types.items()},
            "files": networks.files,
            "float_accuracy": {"validation": networks.before},
        },
    )


if __name__ == "__main__":
    quantize()
