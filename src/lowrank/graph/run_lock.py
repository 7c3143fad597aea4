"""One run at a time in a folder: a lock of the operating system's that ends with its processes.

`snakemake` takes it before it looks at any file, and every step that it starts inherits it. However
the run dies, there is nothing to unlock; a step that outlives its run still holds the lock, so that
no other run meets half of its outputs.
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

# `wait`, the default, or `fail`.
CHOICE = "LOWRANK_LOCK"

# The run that a process belongs to: the process that took the lock, and the lock's descriptor.
_RUN = "LOWRANK_RUN"
_SECONDS_BETWEEN_TRIES = 0.2


class Run(NamedTuple):
    """A run that holds the folder: the process that took the lock, and the open lock file."""

    pid: int
    descriptor: int


def take_lock(say: Callable[[str], None]) -> Run:
    """Take the lock of this folder and keep it as long as this process and its children live.

    Waits while another run has it, and says whose it is; with `LOWRANK_LOCK=fail` that is a
    UserError. A process that belongs to a run shares the lock of that run.
    """
    if run := current_run():
        return run
    wait = _choice() == "wait"
    told = None
    while (descriptor := _try()) is None:
        if (holder := _holder()) != told:
            told = holder
            if not wait:
                raise UserError(
                    f"another run has this folder: {holder}. Run the same command again when it "
                    f"has ended, or unset {CHOICE} to wait for it."
                )
            say(
                f"Another run has this folder: {holder}. Waiting for it to end "
                f"({CHOICE}=fail: give up at once)."
            )
        time.sleep(_SECONDS_BETWEEN_TRIES)
    _sign(descriptor)
    os.environ[_RUN] = f"{os.getpid()}:{descriptor}"
    return Run(os.getpid(), descriptor)


def release_lock(run: Run) -> None:
    """Give up a lock that this process took; its children may still hold it."""
    if run.pid == os.getpid():
        os.environ.pop(_RUN, None)
        os.close(run.descriptor)


@contextlib.contextmanager
def held_lock(say: Callable[[str], None]) -> Iterator[Run]:
    """Hold the lock of this folder for the length of the block."""
    run = take_lock(say)
    try:
        yield run
    finally:
        release_lock(run)


def current_run() -> Run | None:
    """The run that this process belongs to, if it inherited the lock of this folder."""
    pid, _, descriptor = os.environ.get(_RUN, "").partition(":")
    if not pid.isdigit() or not descriptor.isdigit():
        return None
    run = Run(int(pid), int(descriptor))
    # A variable may travel farther than a lock, to another folder or machine.
    with contextlib.suppress(OSError):
        if _same_file(run.descriptor):
            return run
    return None


def _choice() -> str:
    choice = os.environ.get(CHOICE, "wait") or "wait"
    if choice not in ("wait", "fail"):
        raise UserError(f"{CHOICE}={choice}: expected `wait` or `fail`.")
    return choice


def _try() -> int | None:
    """The descriptor of the lock file with the lock on it, None where another process has it."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"{LOCK.resolve()}: cannot be opened ({error.strerror}). A run keeps its lock there; "
            "make the folder writable."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise UserError(
            f"{LOCK.resolve()}: cannot be locked ({error.strerror}). This file system has no "
            "locks, and two runs at once would spoil each other's files; use another one."
        ) from error
    if not _same_file(descriptor):  # Removed by someone meanwhile.
        os.close(descriptor)
        return None
    return descriptor


def _same_file(descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), LOCK.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write down whose the lock is, for those who wait."""
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
        signed = json.loads(LOCK.read_text())
        pid, host = int(signed["pid"]), signed["host"]
        who = f"process {pid} on {host}, `{signed['command']}`, since {signed['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said its name yet"
    if host == socket.gethostname() and not is_there(pid):
        return f"{who}; that process is gone, but a step that it started has not ended yet"
    return who


def is_there(pid: int) -> bool:
    """Whether a process of this number exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
