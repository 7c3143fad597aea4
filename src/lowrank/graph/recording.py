"""What Snakemake built is recorded in dvc.lock, so that DVC takes it for current and keeps it."""

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
from lowrank.graph.dvc_stages import running_stage

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph

Say = Callable[[str], None]

# JSON files in the folder of a round.
_OF_A_ROUND = {"ranks.json", "draft.json", "metrics.json", "curve.json", "timing.json"}
_LATER = "`make record` records it later."


def record_run(jobs: Iterable[Any], config: Any, graph: Graph, say: Say) -> None:
    """Record the variants of the matrix that a run has completed, once all its jobs are done.

    `jobs` are all jobs of its graph, those that had nothing to do included, so that the files of a
    variant whose `summarize` is among them belong to these parameters. Nothing is recorded inside
    `dvc repro`, without DVC, or where options have changed what params.yaml says. Where DVC
    refuses, that is said, and the run is no failure: what it built is there.
    """
    if running_stage() or not Path(".dvc").is_dir() or not shutil.which("dvc"):
        return
    if parse_params(config) != load_params():
        return
    jobs = list(jobs)
    stages = _complete_stages(jobs, graph)
    if not stages:
        return
    try:
        remove_strangers(jobs)
        commit(stages, graph)
    except UserError as error:
        say(f"Not recorded in dvc.lock: {error} {_LATER}")


def commit(stages: Sequence[str], graph: Graph) -> None:
    """Record stages, and those that they depend on, as what belongs to params.yaml and this code.

    Raises UserError where DVC refuses.
    """
    write_digests(Path("build/code.json"), graph.tables.network_codes())
    make_empty_folders(stages)
    command = ["dvc", "commit", "--force", "--with-deps", "--quiet", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        told = next((line for line in lines if line.startswith("ERROR")), "it printed nothing")
        raise UserError(f"`dvc commit` ended with status {done.returncode} ({told}).")


def make_empty_folders(stages: Iterable[str]) -> None:
    """Make the folders that a method without factors or rounds leaves out and DVC expects."""
    for stage in stages:
        name, _, variant = stage.partition("@")
        if name == "summarize":
            folder = Path("build", *variant.split("-"))
            for expected in ("first/factors", "rounds"):
                (folder / expected).mkdir(parents=True, exist_ok=True)


def remove_strangers(jobs: Iterable[Any]) -> None:
    """Remove factors and rounds that an earlier choice of layers or schedule left in their folders.

    DVC takes these folders as they are. Only files that a step wrote are removed: networks and
    factors with lowrank's header, and JSON files of a round by their names.
    """
    made = {str(path) for job in jobs for path in job.output}
    variants = {Path(path).parents[1] for path in made if path.endswith("first/ranks.json")}
    for variant in variants:
        for folder in (variant / "first/factors", variant / "rounds"):
            for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.json")):
                if str(path) not in made and _is_of_a_step(path):
                    path.unlink()


def _is_of_a_step(path: Path) -> bool:
    if path.suffix == ".json":
        folder = path.parent
        return (folder.name.isdigit() and path.name in _OF_A_ROUND) or folder.name == "latencies"
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
            # DVC has the original's outputs as a dependency of every method, Snakemake not.
            learnt_from = Path(f"build/{model}/original/outputs.safetensors")
            if model in matrix.models and method in matrix.methods and learnt_from.exists():
                stages.append(f"summarize@{model}-{method}")
    return sorted(stages)
