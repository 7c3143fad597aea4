"""End a step cleanly when it receives a signal, or when the run that started it has died."""

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

# Time that a step has to tidy up before it is ended forcibly.
_GRACE_SECONDS = 20


@contextlib.contextmanager
def ends_cleanly(say: Callable[[str], None]) -> Iterator[None]:
    """End the block with KeyboardInterrupt when the step receives a signal or its run has died.

    Otherwise a step whose Snakemake was killed would continue for minutes, and the next run would
    have to wait. All temporary files of the block, including those of libraries and programs, are
    in one folder, which is removed at the end of the block. If the step is killed, the next run
    recognizes the folder and removes it.
    """
    with _interrupted_by_signals(), _own_temporary_files():
        if run := current_run():
            # The shell between Snakemake and the step may also be killed.
            for pid in {run.pid, os.getppid()} - {os.getpid()}:
                threading.Thread(target=_end_after, args=(pid, say), daemon=True).start()
        yield


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        # Ignore further signals, so that they do not interrupt the tidying up.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous_handlers = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_temporary_files() -> Iterator[None]:
    previous_folder, previous_variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with temporary_folder() as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = previous_folder
            if previous_variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = previous_variable


def _end_after(pid: int, say: Callable[[str], None]) -> None:
    _wait_for_process(pid)
    say(f"the run that started this step has ended (process {pid}); this step ends, too")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(130)


def _wait_for_process(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # Not Linux.
        while process_exists(pid):
            time.sleep(1)
        return
    select.select([descriptor], [], [])
