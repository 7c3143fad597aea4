"""The beginning and the end of a `snakemake` run: its lock, what dead runs left, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowrank.errors import UserError
from lowrank.graph.run_lock import Run, take_lock
from lowrank.temporary import remove_leftovers, remove_leftovers_in

Say = Callable[[str], None]

# Options with which `snakemake` answers a question and changes no output.
_QUESTIONS = (
    *("dryrun", "lint", "unlock", "containerize", "generate_unit_tests", "archive", "report"),
    *("dag", "rulegraph", "filegraph", "d3dag", "list_rules", "list_target_rules"),
    *("print_compilation", "list_conda_envs", "list_changes", "list_input_changes"),
    *("list_params_changes", "list_untracked", "summary", "detailed_summary", "deploy_sources"),
)

# Where steps write. Below `data` a user may keep a million images: not searched.
_SEARCHED = ("build", "models", "results", "logs", "data/networks", "data/weights")
_BACKUPS = Path(".snakemake/backups")


def begin_run(workflow: Any, say: Say) -> Run | None:
    """Take the folder's lock for a run that may change outputs, and remove what dead runs left.

    None where Snakemake only answers a question, such as a dry run, or runs one job of a run that
    holds the lock elsewhere.
    """
    if not workflow.is_main_process or _only_asks():
        return None
    run = take_lock(say)
    _hand_to_jobs(run)
    if run.pid == os.getpid():
        tidy_up(say)
    return run


def refuse_moved_files(workflow: Any) -> None:
    """Raise UserError where Snakemake would put the workflow's files elsewhere.

    Some steps take folders, and others their caches, by the paths that they have in this folder.
    """
    path = "build/model.onnx"
    if workflow.modifier.path_modifier.replace_prefix(path) != path:
        raise UserError(
            "a module with `prefix:` or `replace_prefix:` would move this workflow's files, which "
            "its steps expect where they are. Leave it out, and give the module a folder of its "
            "own with `snakemake --directory` where its files must not meet others."
        )
    provider = getattr(workflow.storage_settings, "default_storage_provider", None)
    if provider:
        raise UserError(
            f"--default-storage-provider {provider}: this workflow keeps its files in its own "
            "folder, which must be on a disk that all machines share. Run it without that option; "
            "`dvc push` takes the files to S3 and other places."
        )


def builds_outputs(workflow: Any) -> bool:
    """Whether this is a whole run: not one job of it elsewhere, nor `--touch`."""
    return workflow.is_main_process and not workflow.touch and not workflow.dryrun


def tidy_up(say: Say) -> None:
    """Remove the temporary files of dead processes, and Snakemake's backups of their outputs.

    A backup whose output is gone is put back first: its run died while it replaced that output.
    """
    for backup in _outermost(_BACKUPS):
        output = backup.relative_to(_BACKUPS)
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            backup.rename(output)
            say(f"{output}: put back; the run that was replacing it died")
    shutil.rmtree(_BACKUPS, ignore_errors=True)
    removed = remove_leftovers(map(Path, _SEARCHED))
    for place in ("data/datasets", tempfile.gettempdir()):
        removed += remove_leftovers_in(Path(place))
    if removed:
        say(f"removed temporary files that {len(removed)} dead processes left")


def end_steps_when_told(say: Say) -> None:
    """On SIGTERM or SIGINT to Snakemake alone, say so and tell the running steps to end.

    Snakemake by itself waits for them without a word. Call it when Snakemake has set its own
    handlers, which still get the signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def end(received: int, frame: Any, before: Any = before) -> None:
            steps = _running_steps()
            say(
                f"{signal.Signals(received).name}: ending {len(steps)} running steps; the same "
                "command goes on from what is finished."
            )
            for step in steps:
                step.terminate()
            if callable(before):
                before(received, frame)

        signal.signal(number, end)


def _only_asks() -> bool:
    arguments = _arguments()
    if arguments is None or getattr(arguments, "report_after_run", False):
        return False
    return any(getattr(arguments, name, None) for name in _QUESTIONS)


def _arguments() -> Any:
    """Snakemake's command line, which it keeps to itself while it reads a Snakefile.

    None where a program drives Snakemake without one.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "args_to_api":
            return frame.f_locals.get("args")
        frame = frame.f_back
    return None


def _hand_to_jobs(run: Run) -> None:
    """Let the shells of all jobs inherit the lock, which Snakemake's would close."""
    from snakemake.shell import shell

    shell._process_args["pass_fds"] = (run.descriptor,)


def _outermost(folder: Path) -> list[Path]:
    """What was backed up: files, and the folders of datasets and of delivered networks."""
    folders = [*folder.glob("data/datasets/*"), *folder.glob("models/*")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return folders + [path for path in files if not set(path.parents) & set(folders)]


def _running_steps() -> list[Any]:
    """The processes of the steps below this one, without the shells that started them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return [each for each in children if _is_step(each)]


def _is_step(process: Any) -> bool:
    import psutil

    try:
        return any(Path(part).name == "lowrank" for part in process.cmdline()[:2])
    except psutil.Error:
        return False
