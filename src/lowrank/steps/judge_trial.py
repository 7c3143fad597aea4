"""Measure how much accuracy the network of a trial loses on the validation images."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say, use_threads
from lowrank.steps.options import input_path, output_path, parameter


@click.command(cls=Step)
@input_path("original", "The original network, ONNX.")
@input_path("trial", "The network to deliver: an ONNX file or a folder of int8 files.")
@input_path("state", "The original network, safetensors.")
@input_path("dataset", "Folder that the dataset step wrote.")
@input_path("splits", "Folder that the splits step wrote.", optional=True)
@input_path("aim", "The requested share of the cost, JSON; empty for all of it.", optional=True)
@parameter("threads", "CPU threads of the linear algebra.", int)
@output_path("output", "The accuracy drop, JSON.")
def judge_trial(
    original: Path,
    trial: Path,
    state: Path,
    dataset: Path,
    splits: Path | None,
    aim: Path | None,
    threads: int,
    output: Path,
) -> None:
    """Measure how much accuracy the network of a trial loses on the validation images."""
    use_threads(threads)
    from lowrank.data.datasets import open_dataset
    from lowrank.files import read_json, write_json
    from lowrank.onnx_files.int8_files import all_files, runs_here
    from lowrank.ranks.bisection import Found
    from lowrank.surgery.states import read_spec
    from lowrank.tasks.exported import are_right

    images, spec = open_dataset(dataset, splits).validation, read_spec(state)
    share = read_json(aim)["share"] if aim else 1.0
    before = are_right(original, images, spec, threads=threads)

    def judge(path: Path) -> Found:
        # Another device's int8 kernels are not available here. Float kernels compute the outputs
        # that they should compute.
        float_kernels = trial.is_dir() and not runs_here(path)
        after = are_right(path, images, spec, threads=threads, float_kernels=float_kernels)
        return Found.of(
            share,
            lost=int((before & ~after).sum()),
            gained=int((after & ~before).sum()),
            images=len(images),
        )

    # If the devices run different files, the file with the largest loss counts.
    files = all_files(trial) if trial.is_dir() else [trial]
    loss = max(map(judge, files), key=lambda candidate: candidate.drop)
    say(f"loses {loss.drop:.2f} +- {loss.standard_error:.2f} points of validation accuracy")
    write_json(output, loss.to_json())


if __name__ == "__main__":
    judge_trial()
