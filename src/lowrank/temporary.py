"""Temporary folders whose names identify their process, and the removal of leftover folders.

A killed process cannot clean up. The next run removes its folders while it holds the lock that
keeps other runs out. The folder name says which process on which machine created it.
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

# `.gitignore` and `.dvcignore` list names that start with this prefix.
PREFIX = ".lowrank-"

_NAME = re.compile(rf"{re.escape(PREFIX)}(?P<host>\w+)-(?P<pid>\d+)-\w+")

# Age in seconds at which a folder of another machine counts as abandoned. This machine cannot check
# whether a process on the other one is still running.
_ABANDONED_AFTER = 24 * 3600


@contextmanager
def temporary_folder(place: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `place` (default: the system's temporary folder), then remove it."""
    prefix = f"{PREFIX}{_host()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(
        dir=place, prefix=prefix, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary folders of dead processes below `folders`; return the removed paths."""
    removed = []
    for folder in folders:
        for path in _temporary_folders(folder):
            if _is_left_over(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def remove_leftovers_in(place: Path) -> list[Path]:
    """Remove this user's temporary folders of dead processes in one folder, without recursion.

    Returns the removed paths.
    """
    removed = []
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid == os.getuid() and _is_left_over(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def _temporary_folders(folder: Path) -> list[Path]:
    paths = []
    for parent, names, _ in os.walk(folder):
        paths += [Path(parent, name) for name in names if name.startswith(PREFIX)]
        names[:] = [name for name in names if not name.startswith(PREFIX)]
    return paths


def _is_left_over(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if not match:
        return False
    try:
        created = path.lstat().st_mtime
    except OSError:
        return False
    if match["host"] != _host():
        return time.time() - created > _ABANDONED_AFTER
    return not _is_running(int(match["pid"]), since=created)


def _is_running(pid: int, since: float) -> bool:
    """Return whether the process that had the id `pid` at the time `since` is still running."""
    import psutil

    try:
        # A process that is younger than the folder reuses the id of a dead process. The two seconds
        # allow for coarse clocks.
        return psutil.Process(pid).create_time() <= since + 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname()) or "_"
