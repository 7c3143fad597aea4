"""Allow one run at a time in a folder, with a lock that the operating system releases.

`snakemake` takes the lock before it reads any file, and all steps that it starts inherit the lock.
If a run dies, nothing has to be unlocked. A step that outlives its run still holds the lock, so no
other run sees its incomplete outputs.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lowrank.errors import UserError

LOCK = Path(".run.lock")

# Environment variable: `wait`, the default, or `fail`.
CHOICE = "LOWRANK_LOCK"

# Environment variable that names the run of a process: the number of the process that took the
# lock, and the descriptor of the lock file.
_RUN = "LOWRANK_RUN"
_SECONDS_BETWEEN_TRIES = 0.2


class Run(NamedTuple):
    """A run that holds the folder: the process that took the lock, and the open lock file."""

    pid: int
    descriptor: int


def take_lock(say: Callable[[str], None]) -> Run:
    """Take the lock of this folder and keep it as long as this process and its children live.

    If another run holds the lock, report its owner and wait. With `LOWRANK_LOCK=fail`, raise
    UserError instead. A process that belongs to a run shares the lock of that run.
    """
    if run := current_run():
        return run
    wait = _choice() == "wait"
    reported_holder = None
    while (descriptor := _try_lock()) is None:
        if (holder := _holder()) != reported_holder:
            reported_holder = holder
            if not wait:
                raise UserError(
                    f"another run uses this folder: {holder}. Run the same command again when it "
                    f"has ended, or unset {CHOICE} to wait for it."
                )
            say(
                f"Another run uses this folder: {holder}. Waiting for it to end (set {CHOICE}=fail "
                "to stop immediately instead)."
            )
        time.sleep(_SECONDS_BETWEEN_TRIES)
    _write_signature(descriptor)
    os.environ[_RUN] = f"{os.getpid()}:{descriptor}"
    return Run(os.getpid(), descriptor)


def release_lock(run: Run) -> None:
    """Release a lock that this process took. Its children may still hold it."""
    if run.pid == os.getpid():
        os.environ.pop(_RUN, None)
        os.close(run.descriptor)


@contextlib.contextmanager
def held_lock(say: Callable[[str], None]) -> Iterator[Run]:
    """Hold the lock of this folder inside the block."""
    run = take_lock(say)
    try:
        yield run
    finally:
        release_lock(run)


def current_run() -> Run | None:
    """Return the run that this process belongs to, if it inherited the lock of this folder."""
    pid, _, descriptor = os.environ.get(_RUN, "").partition(":")
    if not pid.isdigit() or not descriptor.isdigit():
        return None
    run = Run(int(pid), int(descriptor))
    # The variable may also reach processes without the lock, in another folder or on another
    # machine.
    with contextlib.suppress(OSError):
        if _is_lock_file(run.descriptor):
            return run
    return None


def _choice() -> str:
    choice = os.environ.get(CHOICE, "wait") or "wait"
    if choice not in ("wait", "fail"):
        raise UserError(f"{CHOICE}={choice}: expected `wait` or `fail`. Correct the variable.")
    return choice


def _try_lock() -> int | None:
    """Lock the lock file and return its descriptor, or None if another process holds the lock."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"{LOCK.resolve()}: cannot be opened ({error.strerror}). A run needs this file for its "
            "lock. Make the folder writable."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise UserError(
            f"{LOCK.resolve()}: cannot be locked ({error.strerror}). This file system does not "
            "support locks, and two runs at once would damage each other's files. Use a folder on "
            "another file system."
        ) from error
    if not _is_lock_file(descriptor):  # The file was removed in the meantime.
        os.close(descriptor)
        return None
    return descriptor


def _is_lock_file(descriptor: int) -> bool:
    """Return whether the descriptor still belongs to the file at the lock's path."""
    try:
        return os.path.samestat(os.fstat(descriptor), LOCK.stat())
    except FileNotFoundError:
        return False


def _write_signature(descriptor: int) -> None:
    """Write the owner of the lock into its file, for runs that wait."""
    program, *arguments = sys.argv
    signature = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(program).name, *arguments]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(signature).encode(), 0)


def _holder() -> str:
    try:
        signature = json.loads(LOCK.read_text())
        pid, host = int(signature["pid"]), signature["host"]
        owner = f"process {pid} on {host}, `{signature['command']}`, since {signature['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not written its name yet"
    if host == socket.gethostname() and not process_exists(pid):
        return f"{owner}; that process has ended, but a step that it started is still running"
    return owner


def process_exists(pid: int) -> bool:
    """Return whether a process with this number exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
