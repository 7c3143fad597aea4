"""How a step ends before its time: told to, or because the run that started it is gone."""

import contextlib
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lowrank.graph.run_lock import current_run, process_exists
from lowrank.temporary import temporary_folder

# For the step's own tidying up, before it is ended without.
_GRACE_SECONDS = 20


@contextlib.contextmanager
def ends_cleanly(say: Callable[[str], None]) -> Iterator[None]:
    """Let the block end by KeyboardInterrupt when the step is told to end, or its run is gone.

    A step whose Snakemake was killed would otherwise go on for minutes and keep the next run
    waiting. Temporary files of the block, its libraries and its programs lie in one folder, which
    goes with it, or is known as a dead process's by the next run.
    """
    with _interrupted_by_signals(), _own_temporary_files():
        if run := current_run():
            # The shell between Snakemake and the step may be killed alone.
            for pid in {run.pid, os.getppid()} - {os.getpid()}:
                threading.Thread(target=_end_with, args=(pid, say), daemon=True).start()
        yield


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        # A second one would cut the tidying up short.
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in caught}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _own_temporary_files() -> Iterator[None]:
    named, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with temporary_folder() as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = named
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


def _end_with(pid: int, say: Callable[[str], None]) -> None:
    _wait_for_end_of(pid)
    say(f"the run that started this step is gone (process {pid}); the step ends as well")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(130)


def _wait_for_end_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # Not Linux.
        while process_exists(pid):
            time.sleep(1)
        return
    select.select([descriptor], [], [])
