"""What every step's command line shares: options, the log, and how a mistake is told."""

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

from lowrank.errors import UserError
from lowrank.files import cannot_write
from lowrank.graph.run_lock import current_run
from lowrank.steps.ending import ends_cleanly

_logger = logging.getLogger("lowrank")


class Step(click.Command):
    """A command that tells a user's mistake in one paragraph, and its progress in two places.

    Progress lines go to the terminal and, with `--log FILE`, to that file, which holds a crash's
    traceback too. A traceback of a user's own mistake is shown when LOWRANK_TRACEBACK is set.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += [
            click.Option(["--log"], type=Path, help="Write the progress lines here as well."),
            click.Option(["--label"], default="", help="Put this before each progress line."),
        ]

    def invoke(self, context: click.Context) -> Any:
        log, label = context.params.pop("log"), context.params.pop("label")
        try:
            _set_up_logging(log, readable_label(label) or (self.name or ""))
            with ends_cleanly(_logger.warning):
                return super().invoke(context)
        except UserError as error:
            if os.environ.get("LOWRANK_TRACEBACK"):
                raise
            _logger.error("error: %s", error)
            sys.exit(1)
        except KeyboardInterrupt:
            _logger.error("interrupted; the same command goes on from what is finished")
            sys.exit(130)
        except Exception as error:
            place = getattr(error, "filename", None) or f"an output of `{self.name}`"
            if told := cannot_write(Path(os.fsdecode(place)), error):
                _logger.error("error: %s", told)
                sys.exit(1)
            if log:
                _logger.exception("unexpected error")
            raise


def readable_label(label: str) -> str:
    """Return a rule's name with the values of its wildcards, network and method first.

    >>> readable_label("finetune method=tucker,model=vgg16,round=1")
    'finetune vgg16 tucker 1'
    """
    rule, _, listed = label.partition(" ")
    pairs = [each.partition("=") for each in listed.split(",") if each]
    values = {name: value or name for name, _, value in pairs}
    first = [values.pop(name) for name in ("model", "method") if name in values]
    return " ".join([rule, *first, *values.values()])


def say(line: str) -> None:
    """Tell the user one line of progress."""
    _logger.info(line)


def run(*command: str, check: bool = True) -> int:
    """Run another program in the terminal; its exit status. Raises UserError when it fails."""
    # A `snakemake` among them shares the lock of the folder, where this process has it.
    lock = current_run()
    kept = (lock.descriptor,) if lock else ()
    status = subprocess.run(command, check=False, pass_fds=kept).returncode
    if check and status:
        raise UserError(f"`{' '.join(command)}` ended with status {status}; its message is above.")
    return status


def use_threads(count: int) -> None:
    """Fix the threads of the linear algebra; call it before NumPy or PyTorch is imported.

    Threads decide how sums are split and so the last bits of a result: they are a parameter of
    the step, whatever number of cores the workflow was given.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)


def reuse_memory() -> None:
    """Keep what is freed for the next allocation, where the C library can be told to.

    A training step allocates and frees about a gigabyte of feature maps. Given back to the kernel
    each time, as glibc does with large blocks, every page of it must be mapped and cleared anew;
    `benchmarks/training_speed.py` measures what that costs.
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
    """Hold a lock for `path`, so that two runs never share its half-finished state.

    The lock is the operating system's and ends with its process, however that dies. Waits for
    the other run when there is one, and says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is building the same output; waiting for it ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Log(logging.FileHandler):
    """A log that cannot be written ends with one line on the terminal; the step goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        _logger.removeHandler(self)
        _logger.warning("%s: cannot be written: %s", self.baseFilename, sys.exc_info()[1])


def _set_up_logging(log: Path | None, label: str) -> None:
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[{label}] %(message)s" if label else None))
    _logger.handlers = [terminal]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = _Log(log, mode="w")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        _logger.addHandler(file)
