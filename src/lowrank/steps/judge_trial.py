"""Measure how much worse the network of a trial is on the validation images."""

from pathlib import Path

import click

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import (
    input_path,
    network_option,
    output_path,
    parameter,
    task_option,
)


@click.command(cls=Step)
@input_path("original", "The original network, ONNX.")
@input_path("trial", "The network to deliver: an ONNX file or a folder of int8 files.")
@network_option
@task_option
@input_path("state", "The original network, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path("aim", "The requested share of the cost, JSON; empty for all of it.", optional=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("output", "The drop of the metric, JSON.")
def judge_trial(
    original: Path,
    trial: Path,
    network: NetworkSource,
    task: str,
    state: Path,
    dataset: Path,
    splits: Path | None,
    aim: Path | None,
    threads: int,
    output: Path,
) -> None:
    """Measure how much worse the network of a trial is on the validation images."""
    use_threads(threads)
    from dataclasses import replace

    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.exported import ExportedNetworks
    from lowrank.evaluation.reference import with_reference
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.int8_files import all_files, runs_here
    from lowrank.ranks.bisection import Found
    from lowrank.surgery.states import read_spec
    from lowrank.tasks import get_task

    measured_task = get_task(task)
    data = with_reference(open_dataset(dataset, splits), measured_task, state, network)
    images = data.validation
    in_runtime = ExportedNetworks(measured_task, read_spec(state), threads)
    share = read_json(aim)["share"] if aim else 1.0
    before = in_runtime.measure(original, images)

    def judge(path: Path) -> Found:
        # Another device's int8 kernels are not available here. Float kernels compute the outputs
        # that they should compute.
        float_kernels = trial.is_dir() and not runs_here(path)
        after = replace(in_runtime, float_kernels=float_kernels).measure(path, images)
        return Found(share, *in_runtime.task.drop(before, after))

    # If the devices run different files, the file with the largest loss counts.
    files = all_files(trial) if trial.is_dir() else [trial]
    loss = max(map(judge, files), key=lambda candidate: candidate.drop)
    metric = in_runtime.task.metric
    error = metric.difference(loss.standard_error)
    say(f"loses {metric.number(loss.drop)} +- {error} of validation {metric.noun}")
    write_json(output, loss.to_json())


if __name__ == "__main__":
    judge_trial()
