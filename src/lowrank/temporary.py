"""Temporary folders that say in their names whose they are, and the removal of what the dead left.

A process that is killed cannot tidy up. The next run does it, under the lock that keeps other runs
out of the folder, and knows by the name which process of which machine a folder belonged to.
"""

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# `.gitignore` and `.dvcignore` know names that begin so.
PREFIX = ".lowrank-"

_NAME = re.compile(rf"{re.escape(PREFIX)}(?P<host>\w+)-(?P<pid>\d+)-\w+")

# Seconds after which what another machine left is given up: nothing here tells whether the process
# still lives over there.
_FOREIGN_AGE = 24 * 3600


@contextmanager
def temporary_folder(place: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, in the system's place for temporary files by default; then remove it."""
    prefix = f"{PREFIX}{_host()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(
        dir=place, prefix=prefix, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary folders of dead processes below `folders`; what was removed."""
    removed = []
    for folder in folders:
        for path in _temporary(folder):
            if _is_left_over(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def remove_leftovers_in(place: Path) -> list[Path]:
    """Remove this user's temporary folders of dead processes in one folder, not deeper down."""
    removed = []
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid == os.getuid() and _is_left_over(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def _temporary(folder: Path) -> list[Path]:
    found = []
    for here, names, _ in os.walk(folder):
        found += [Path(here, name) for name in names if name.startswith(PREFIX)]
        names[:] = [name for name in names if not name.startswith(PREFIX)]
    return found


def _is_left_over(path: Path) -> bool:
    named = _NAME.fullmatch(path.name)
    if not named:
        return False
    try:
        made = path.lstat().st_mtime
    except OSError:
        return False
    if named["host"] != _host():
        return time.time() - made > _FOREIGN_AGE
    return not _lives(int(named["pid"]), since=made)


def _lives(pid: int, since: float) -> bool:
    """Whether the process that had this number then still has it."""
    import psutil

    try:
        # A younger process got the number of a dead one. Two seconds: clocks are coarse.
        return psutil.Process(pid).create_time() <= since + 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname()) or "_"
