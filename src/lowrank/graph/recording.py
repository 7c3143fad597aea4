"""Record what Snakemake has built in dvc.lock, so that DVC treats it as current and keeps it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.config.reading import load_params, parse_params
from lowrank.core.stored import read_header
from lowrank.errors import UserError
from lowrank.graph.code_digests import write_digests
from lowrank.graph.dvc_stages import MAY_BE_EMPTY, running_stage

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph

Say = Callable[[str], None]

# JSON files in the folder of a round.
_ROUND_FILES = {"ranks.json", "draft.json", "metrics.json", "curve.json", "timing.json"}
_RECORD_LATER = "Run `make record` to record it later."


def record_run(jobs: Iterable[Any], config: Any, graph: Graph, say: Say) -> None:
    """Record the variants of the matrix that a run has completed, after all its jobs are done.

    `jobs` are all jobs of the run's graph, including those that had nothing to do. So the files of
    each variant whose `summarize` is among them belong to these parameters. Nothing is recorded
    inside `dvc repro`, without DVC, or if options have overridden params.yaml. If DVC refuses, the
    reason is reported. The run has still succeeded, because its outputs exist. Outputs on storage
    are not recorded, because DVC records only files of this folder. This is reported, too.
    """
    if graph.stored_at:
        say(f"The outputs are in {graph.stored_at}, and not recorded in dvc.lock.")
        return
    if running_stage() or not Path(".dvc").is_dir() or not shutil.which("dvc"):
        return
    if not (Path("dvc.yaml").is_file() and Path("params.yaml").is_file()):
        return  # A folder of the user, in which this workflow is a module.
    if parse_params(config) != load_params():
        return
    jobs = list(jobs)
    stages = _complete_stages(jobs, graph)
    if not stages:
        return
    try:
        remove_stale_files(jobs)
        commit(stages, graph)
    except UserError as error:
        say(f"Not recorded in dvc.lock: {error} {_RECORD_LATER}")


def commit(stages: Sequence[str], graph: Graph) -> None:
    """Record stages and their dependencies as up to date with params.yaml and this code.

    Raises UserError if DVC refuses.
    """
    write_digests(Path("build/code.json"), graph.tables.network_codes())
    make_empty_folders(stages)
    command = ["dvc", "commit", "--force", "--with-deps", "--quiet", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        message = next((line for line in lines if line.startswith("ERROR")), "it printed nothing")
        raise UserError(f"`dvc commit` ended with status {done.returncode} ({message}).")


def make_empty_folders(stages: Iterable[str]) -> None:
    """Make the folders that DVC expects of every method, and that stay empty for some."""
    for stage in stages:
        name, _, variant = stage.partition("@")
        if name == "summarize":
            folder = Path("build", *variant.split("-"))
            for expected in MAY_BE_EMPTY:
                (folder / expected).mkdir(parents=True, exist_ok=True)


def remove_stale_files(jobs: Iterable[Any]) -> None:
    """Remove factors, rounds and trials that earlier settings have left behind.

    They are removed because DVC records these folders as they are. Of factors and rounds, only
    files that a step wrote are removed: networks and factors with lowrank's header, and JSON files
    with the names of a round's files. The folder of a search contains only what a search makes.
    """
    outputs = {str(path) for job in jobs for path in job.output}
    variants = {Path(path).parents[1] for path in outputs if path.endswith("first/ranks.json")}
    for variant in variants:
        for path in (variant / "search").glob("*"):
            if not any(output == str(path) or output.startswith(f"{path}/") for output in outputs):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (variant / "first/factors", variant / "rounds"):
            for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.json")):
                if str(path) not in outputs and _is_written_by_step(path):
                    path.unlink()


def _is_written_by_step(path: Path) -> bool:
    if path.suffix == ".json":
        folder = path.parent
        return (folder.name.isdigit() and path.name in _ROUND_FILES) or folder.name == "latencies"
    try:
        read_header(path)
    except UserError:
        return False
    return True


def _complete_stages(jobs: Iterable[Any], graph: Graph) -> list[str]:
    stages = []
    for job in jobs:
        if job.rule.name == "overview":
            stages.append("overview")
        elif job.rule.name == "summarize":
            model, method = job.wildcards.model, job.wildcards.method
            matrix = graph.params.matrix
            # In dvc.yaml every method depends on the original's outputs. Snakemake makes them only
            # for methods that learn from them.
            teacher_outputs = Path(f"build/{model}/original/outputs.safetensors")
            if model in matrix.models and method in matrix.methods and teacher_outputs.exists():
                stages.append(f"summarize@{model}-{method}")
    return sorted(stages)
