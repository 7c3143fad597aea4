"""Quantize an exported network to int8 for each kind of hardware, and measure the result."""

import tempfile
from pathlib import Path
from typing import Any

import click

from lowrank.config.network_source import NetworkSource
from lowrank.config.quantize import QuantizeSettings
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    Json,
    input_path,
    input_paths,
    network_option,
    output_path,
    parameter,
    reference_option,
    task_option,
)


@click.command(cls=Step)
@network_option
@task_option
@reference_option
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
    network: NetworkSource,
    task: str,
    reference: Path | None,
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
    from lowrank.evaluation.reference import with_reference
    from lowrank.onnx_files.int8 import types_for
    from lowrank.onnx_networks.int8_preparation import write_prepared
    from lowrank.surgery.states import read_spec
    from lowrank.tasks import get_task

    processors = {path.stem: Processor.from_json(read_json(path)) for path in devices}
    types = {name: types_for(processor, settings) for name, processor in processors.items()}
    measured_task = get_task(task)
    in_runtime = ExportedNetworks(measured_task, read_spec(state), settings.threads)
    data = with_reference(open_dataset(dataset, splits), measured_task, reference, network)
    with tempfile.TemporaryDirectory() as prepared, tempfile.TemporaryDirectory() as intermediate:
        sizes = None
        if network.onnx:
            model = write_prepared(model, Path(prepared) / model.name)
            sizes = in_runtime.spec.sizes
        networks = Int8Networks(model, in_runtime, data, settings, Path(intermediate), say, sizes)
        networks.write_all(types, connections, folder)
    if settings.by_time:
        write_json(folder / TIMES, networks.times)
    write_json(report, {"kind": kind} | networks.document(types))


if __name__ == "__main__":
    quantize()
