"""Begin and end a `snakemake` run: its lock, the leftovers of dead runs, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from lowrank.errors import UserError
from lowrank.graph.run_lock import Run, take_lock
from lowrank.temporary import remove_leftovers, remove_leftovers_in

Say = Callable[[str], None]

# Options with which `snakemake` prints information and changes no output.
_READ_ONLY_OPTIONS = (
    *("dryrun", "lint", "unlock", "containerize", "generate_unit_tests", "archive", "report"),
    *("dag", "rulegraph", "filegraph", "d3dag", "list_rules", "list_target_rules"),
    *("print_compilation", "list_conda_envs", "list_changes", "list_input_changes"),
    *("list_params_changes", "list_untracked", "summary", "detailed_summary", "deploy_sources"),
)

# Rules whose steps save their state when they receive a signal.
_TRAINING_RULES = ("finetune", "pretrain")

# Folders in which steps write. Only these are searched, as `data` may contain a million images.
_SEARCHED = ("build", "models", "results", "logs", "data/networks", "data/weights")
_BACKUPS = Path(".snakemake/backups")

# Folders of the workflow's files.
_FOLDERS = ("build", "data", "logs", "models", "results")


def begin_run(workflow: Any, say: Say, *prefixes: str) -> Run | None:
    """Take the folder's lock for a run that may change outputs, and tidy up after dead runs.

    Return None if Snakemake changes no output, as in a dry run, or if it runs a single job of a
    run that holds the lock elsewhere. `prefixes` are those of the folders that are tidied up.
    """
    if not workflow.is_main_process or _is_read_only():
        return None
    run = take_lock(say)
    _pass_to_jobs(run)
    if run.pid == os.getpid():
        tidy_up(say, *prefixes)
    return run


def run_steps_in_this_process(workflow: Any, rules: Iterable[str]) -> None:
    """Let a job on a cluster run its steps from the Snakemake process that the job has started.

    By default, the Slurm plugin starts another Snakemake for each step of the job, which takes two
    seconds, and one step at a time. Training is left to the plugin: shortly before the time of a
    job is over, Slurm sends its signal only to processes that the plugin started.
    """
    # Jobs on other kinds of cluster have one Snakemake, which has cores instead of nodes.
    if not workflow.remote_exec or workflow.nodes is None:
        return
    workflow.localrules(*(name for name in rules if not name.endswith(_TRAINING_RULES)))
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        # Steps that run at the same time. Snakemake asked for cores for all of them.
        workflow.register_resource("_nodes", int(cores))


def prefix_of(workflow: Any) -> str:
    """Return the prefix of the paths of a module's rules, such as `sub/`; empty without a module.

    Raises UserError for a module that would move only some of the files.
    """
    modifier = workflow.modifier.path_modifier
    moved: dict[str, str] = {folder: modifier.replace_prefix(f"{folder}/") for folder in _FOLDERS}
    prefixes = {path.removesuffix(f"{folder}/") for folder, path in moved.items()}
    prefix = min(prefixes, key=len)
    if any(path != f"{prefix}{folder}/" for folder, path in moved.items()):
        raise UserError(
            "a module with `replace_prefix:` would move some files of this workflow, but its steps "
            "expect them beside each other. Use `prefix:`, which moves all of them."
        )
    return prefix


def builds_outputs(workflow: Any) -> bool:
    """Return whether this is a complete run: not a single job, `--touch` or a dry run."""
    return workflow.is_main_process and not workflow.touch and not workflow.dryrun


def tidy_up(say: Say, prefix: str = "", *copies: str) -> None:
    """Remove the temporary files of dead processes, and Snakemake's backups of their outputs.

    If an output is missing, its backup is restored first, because its run died while it was
    replacing the output. `copies` are prefixes of the local copies of files on storage.
    """
    prefixes = dict.fromkeys((prefix, *copies))
    for backup in _outermost(_BACKUPS, prefix):
        output = backup.relative_to(_BACKUPS)
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            backup.rename(output)
            say(f"{output}: restored from a backup, because the run that was replacing it died")
    shutil.rmtree(_BACKUPS, ignore_errors=True)
    removed = remove_leftovers(Path(place, folder) for place in prefixes for folder in _SEARCHED)
    for folder in (*(f"{place}data/datasets" for place in prefixes), tempfile.gettempdir()):
        removed += remove_leftovers_in(Path(folder))
    if removed:
        say(f"removed {len(removed)} temporary folders that earlier runs left behind")


def end_steps_on_signal(say: Say) -> None:
    """Install handlers that end the running steps when Snakemake receives SIGTERM or SIGINT.

    Without them, Snakemake silently waits for the steps. Call this function after Snakemake has
    installed its own handlers, which are still called.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        previous_handler = signal.getsignal(number)

        def end(received: int, frame: Any, previous_handler: Any = previous_handler) -> None:
            steps = _running_steps()
            say(
                f"{signal.Signals(received).name}: ending {len(steps)} running steps. Run the same "
                "command again to continue."
            )
            for step in steps:
                step.terminate()
            if callable(previous_handler):
                previous_handler(received, frame)

        signal.signal(number, end)


def _is_read_only() -> bool:
    arguments = _arguments()
    if arguments is None or getattr(arguments, "report_after_run", False):
        return False
    return any(getattr(arguments, name, None) for name in _READ_ONLY_OPTIONS)


def _arguments() -> Any:
    """Return Snakemake's parsed command line, which has no public access in a Snakefile.

    Return None if a program calls Snakemake without a command line.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "args_to_api":
            return frame.f_locals.get("args")
        frame = frame.f_back
    return None


def _pass_to_jobs(run: Run) -> None:
    """Let the shells of all jobs inherit the lock. By default, Snakemake would close it."""
    from snakemake.shell import shell

    shell._process_args["pass_fds"] = (run.descriptor,)


def _outermost(folder: Path, prefix: str) -> list[Path]:
    """Return the backed-up paths: files, and the folders of datasets and delivered networks."""
    base = folder / prefix
    folders = [*base.glob("data/datasets/*"), *base.glob("models/*")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return folders + [path for path in files if not set(path.parents) & set(folders)]


def _running_steps() -> list[Any]:
    """Return the processes of running steps below this one, without the shells around them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return [child for child in children if _is_step(child)]


def _is_step(process: Any) -> bool:
    import psutil

    try:
        return any(Path(part).name == "lowrank" for part in process.cmdline()[:2])
    except psutil.Error:
        return False
