"""Export a network to ONNX, count its costs, compare it with PyTorch and measure it."""

from dataclasses import asdict, replace
from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, reuse_memory, say, use_threads
from lowrank.steps.options import (
    input_path,
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
@input_path("state", "The network, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@parameter("images", "Number of test images for the comparison with PyTorch.", int)
@parameter("accuracy", "Measure the task's metric on the test split.", bool, default=True)
@output_path("model", "The network, ONNX.")
@output_path("report", "Counts, comparison and accuracy, JSON.")
def export_onnx(
    network: NetworkSource,
    task: str,
    reference: Path | None,
    state: Path,
    dataset: Path,
    splits: Path | None,
    threads: int,
    images: int,
    accuracy: bool,
    model: Path,
    report: Path,
) -> None:
    """Export a network to ONNX, count its costs, compare it with PyTorch and measure it."""
    use_threads(threads)
    reuse_memory()
    import torch

    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.exported import ExportedNetworks
    from lowrank.evaluation.reference import with_reference
    from lowrank.files import write_json
    from lowrank.onnx_files.counts import count
    from lowrank.onnx_files.export import export_onnx as write_onnx
    from lowrank.onnx_files.measured_form import measured_form
    from lowrank.surgery.states import read_state
    from lowrank.tasks import get_task

    torch.set_num_threads(threads)
    exported = read_state(state, network)
    measured_task = get_task(task)
    data = open_dataset(dataset, splits)
    if accuracy:
        data = with_reference(data, measured_task, reference, network)
    write_onnx(exported.network, exported.spec, model)
    with measured_form(model, exported.spec, network, for_counting=True) as fixed:
        counts = replace(count(fixed), size_bytes=model.stat().st_size)
    say(
        f"{counts.parameters / 1e6:.2f} M parameters, {counts.macs / 1e6:.1f} M "
        f"multiply-accumulates, {counts.size_bytes / 1e6:.2f} MB"
    )
    if counts.not_counted:
        say(
            f"warning: {', '.join(counts.not_counted)} not counted: the network has more "
            "multiply-accumulates than reported"
        )
    sample = data.test.sample(images)
    in_runtime = ExportedNetworks(measured_task, exported.spec, threads)
    check = in_runtime.compare_with_pytorch(model, exported.network, sample)
    say(
        f"ONNX Runtime: outputs within {check['max_abs_error']:.1e} of PyTorch's on "
        f"{check['images']} test images"
    )
    document = {"counts": asdict(counts), "check": check}
    if accuracy:
        values, metric = in_runtime.values(model, data.test), in_runtime.task.metric
        say(f"ONNX Runtime: {metric.noun} {metric.text(values[metric.key])} on the test split")
        document["accuracy"] = values
    write_json(report, document)


if __name__ == "__main__":
    export_onnx()
