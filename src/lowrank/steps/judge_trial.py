"""Measure what the network of a trial loses on the validation images."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say, use_threads


@click.command(cls=Step)
@click.option("--original", type=Path, required=True, help="ONNX file.")
@click.option(
    "--trial", type=Path, required=True, help="What would be delivered: ONNX file, or its folder."
)
@click.option("--state", type=Path, required=True, help="The original, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--aim", default="", help="The share that was asked for, JSON; empty: all of it.")
@click.option("--threads", type=int, required=True)
@click.option("--output", type=Path, required=True, help="Output: the drop, JSON.")
def judge_trial(
    original: Path,
    trial: Path,
    state: Path,
    dataset: Path,
    splits: str,
    aim: str,
    threads: int,
    output: Path,
) -> None:
    """Measure what the network of a trial loses on the validation images."""
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

    def judged(path: Path) -> Found:
        # Of another device's file what its kernels should answer, which are not here.
        float_kernels = trial.is_dir() and not runs_here(path)
        after = are_right(path, images, spec, threads=threads, float_kernels=float_kernels)
        return Found.of(
            share,
            lost=int((before & ~after).sum()),
            gained=int((after & ~before).sum()),
            images=len(images),
        )

    # Where the devices run different files, the one that loses most counts.
    files = all_files(trial) if trial.is_dir() else [trial]
    found = max(map(judged, files), key=lambda each: each.drop)
    say(f"loses {found.drop:.2f} +- {found.standard_error:.2f} points of validation accuracy")
    write_json(output, found.to_json())


if __name__ == "__main__":
    judge_trial()
