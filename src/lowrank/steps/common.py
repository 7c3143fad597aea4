"""Shared parts of the steps' command lines: options, the log, and the report of errors."""

import ctypes
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lowrank.config.training import TrainingSettings
from lowrank.core.copies import copy_count, copy_number
from lowrank.errors import UserError
from lowrank.files import cannot_write
from lowrank.graph.container import check_code_of_image
from lowrank.graph.run_lock import current_run
from lowrank.steps.ending import ends_cleanly

_logger = logging.getLogger("lowrank")

_ARGUMENTS = "lowrank.arguments"


# The extra of pyproject.toml that brings a module.
EXTRAS = {
    "onnx2torch": "workflow",
    "dvc": "workflow",
    "snakemake": "workflow",
    "torchvision": "workflow",
    "adjustText": "report",
    "matplotlib": "report",
    "vl_convert": "report",
}


class Step(click.Command):
    """A command that reports progress and errors.

    Progress lines go to the terminal and, with `--log FILE`, also to that file. The file also gets
    the traceback of a crash. An error that the user can correct is reported in one paragraph. Its
    traceback is shown only if LOWRANK_TRACEBACK is set.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += [
            click.Option(["--log"], type=Path, help="Also write the progress lines to this file."),
            click.Option(["--label"], default="", help="Text before each progress line."),
        ]

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Remember the arguments, so that a step can run copies of itself."""
        context.meta[_ARGUMENTS] = list(arguments)
        return super().parse_args(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        log, label = context.params.pop("log"), context.params.pop("label")
        try:
            _set_up_logging(log, readable_label(label) or (self.name or ""))
            check_code_of_image()
            with ends_cleanly(_logger.warning):
                return super().invoke(context)
        except UserError as error:
            if os.environ.get("LOWRANK_TRACEBACK"):
                raise
            _logger.error("error: %s", error)
            sys.exit(1)
        except KeyboardInterrupt:
            _logger.error("interrupted; run the same command again to continue")
            sys.exit(130)
        except Exception as error:
            module = (getattr(error, "name", None) or "").partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and module in EXTRAS:
                _logger.error("error: %s", _not_installed(f"package `{module}`", EXTRAS[module]))
                sys.exit(1)
            path = getattr(error, "filename", None) or f"an output of `{self.name}`"
            if message := cannot_write(Path(os.fsdecode(path)), error):
                _logger.error("error: %s", message)
                sys.exit(1)
            if log:
                _logger.exception("unexpected error")
            raise


def readable_label(label: str) -> str:
    """Return the name of a rule and the values of its wildcards, network and method first.

    >>> readable_label("finetune method=tucker,model=vgg16,round=1")
    'finetune vgg16 tucker 1'
    """
    rule, _, listed = label.partition(" ")
    pairs = [pair.partition("=") for pair in listed.split(",") if pair]
    values = {name: value or name for name, _, value in pairs}
    first = [values.pop(name) for name in ("model", "method") if name in values]
    return " ".join([rule, *first, *values.values()])


def ran_in_copies(settings: TrainingSettings, lock: Path) -> bool:
    """Run the current step in as many copies as `settings` ask for, while holding `lock`.

    Return False, without running anything, if this process is a copy, or if one process is enough.
    """
    from lowrank.training.several_processes import process_count, run_copies

    count = 1 if copy_number() is not None else process_count(settings)
    if count == 1:
        return False
    context = click.get_current_context()
    module, arguments = f"lowrank.steps.{context.command.name}", context.meta[_ARGUMENTS]
    say(f"starting {count} processes")
    with sole_builder_of(lock):
        run_copies([sys.executable, "-m", module, *arguments], count, settings.device)
    return True


def say(line: str) -> None:
    """Report one line of progress to the user."""
    _logger.info(line)


def run(*command: str, check: bool = True) -> int:
    """Run another program in the terminal and return its exit status.

    Raises UserError if the program is not installed, or if it fails, unless `check` is false.
    """
    # If this process holds the lock of the folder, a `snakemake` that it starts shares the lock.
    lock = current_run()
    descriptors = (lock.descriptor,) if lock else ()
    try:
        status = subprocess.run(command, check=False, pass_fds=descriptors).returncode
    except FileNotFoundError as error:
        raise UserError(_not_installed(f"program `{command[0]}`", "workflow")) from error
    if check and status:
        raise UserError(f"`{' '.join(command)}` ended with status {status}. See its message above.")
    return status


def _not_installed(what: str, extra: str) -> str:
    return (
        f"the {what} is not installed. Run `make env`, or install lowrank with its extra "
        f"`lowrank[{extra}]`, then run this command again."
    )


def use_threads(count: int) -> int:
    """Set the number of threads for linear algebra. Call this before importing NumPy or PyTorch.

    The number of threads determines how sums are split, and so the last bits of a result.
    Therefore it is a parameter of the step and does not depend on the cores of the workflow.

    Return the number of this process: copies share the threads of their step.
    """
    count = max(1, count // copy_count())
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    return count


def share_processor() -> None:
    """Let threads of linear algebra sleep while they wait. Call this before importing PyTorch.

    By default, they spin. If other work shares the machine, this multiplies the time: by 3.5 for
    the statistics of layer inputs of a text recognition network. Results stay the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def reuse_memory() -> None:
    """Keep freed memory for the next allocation, if the C library supports this.

    A training step allocates and frees about 1 GB of feature maps. By default, glibc returns large
    blocks to the kernel, so every page must be mapped and cleared again in each step.
    `benchmarks/training_speed.py` measures the cost.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # Another C library.
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def sole_builder_of(path: Path) -> Iterator[None]:
    """Hold a lock for `path`, so that two runs never use the same unfinished state.

    If another run holds the lock, report that and wait. The operating system releases the lock when
    its process ends, even if the process is killed. For copies, the process that started them holds
    the lock.
    """
    if copy_number() is not None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is building the same output; waiting for it to end ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Log(logging.FileHandler):
    """A log file. If writing to it fails, a warning is printed and the step continues."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        _logger.removeHandler(self)
        _logger.warning("%s: cannot be written: %s", self.baseFilename, sys.exc_info()[1])


def _set_up_logging(log: Path | None, label: str) -> None:
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[{label}] %(message)s" if label else None))
    _logger.handlers = [terminal]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    if copy_number():
        # The first copy reports progress.
        _logger.setLevel(logging.ERROR)
    elif log:
        log.parent.mkdir(parents=True, exist_ok=True)
        # A copy and the process that started it write to the same log.
        if copy_number() is None:
            log.unlink(missing_ok=True)
        file = _Log(log, mode="a")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        _logger.addHandler(file)
