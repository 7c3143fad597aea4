"""Copy files of the trial that a search has chosen."""

from pathlib import Path

import click

from lowrank.steps.common import Step, say
from lowrank.steps.options import input_path, input_paths, output_paths


@click.command(cls=Step)
@input_path("report", "The report of the search, JSON.")
@input_paths("candidates", "The files of all trials: those of the first trial, and so on.")
@output_paths("files", "The files of the chosen trial.")
def take_trial(report: Path, candidates: list[Path], files: list[Path]) -> None:
    """Copy files of the trial that a search has chosen."""
    import shutil

    from lowrank.files import read_json, written_whole

    number = read_json(report)["taken"]
    chosen = candidates[(number - 1) * len(files) : number * len(files)]
    for source, output in zip(chosen, files, strict=True):
        with written_whole(output) as partial:
            shutil.copyfile(source, partial)
    say(f"the files of trial {number} are those of the method")


if __name__ == "__main__":
    take_trial()
