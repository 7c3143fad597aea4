"""Write files completely or not at all, and explain errors such as a full disk."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.errors import UserError
from lowrank.temporary import PREFIX, temporary_folder


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path with the same file name, and move it to `path` on success.

    The temporary path is in a temporary folder next to `path`. The folder also collects the extra
    files that some libraries create next to a file while they write it. If the process dies inside
    the block, `path` keeps its old content. Raises UserError when the disk is full or the folder is
    not writable.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as folder:
            partial = folder / path.name
            partial.touch()
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
    except Exception as error:
        if user_error := cannot_write(path, error):
            raise user_error from error
        raise


def write_json(path: str | os.PathLike, document: Any) -> None:
    """Write a JSON document completely or not at all, indented, with a final newline."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file completely or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON document. Raises UserError with the path for a missing or damaged file."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a JSON document ({error}). Delete it and run the same command again."
        ) from error


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 digest of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: Exception) -> UserError | None:
    """Return the error to show when a file cannot be written; None for any other problem.

    `path` is the file being written; it is used when the error does not name a file. Libraries
    written in other languages raise exceptions that are not an OSError. For these, the error number
    is read from the message.
    """
    os_error = _os_error(error)
    if os_error is None or os_error.errno not in _REMEDIES:
        return None
    place = path
    if os_error.filename is not None:
        error_path = Path(os.fsdecode(os_error.filename))
        # Partial files have the final name. Folders above the final path are needed to write it.
        is_ours = error_path.name == path.name or path.resolve().is_relative_to(
            error_path.resolve()
        )
        if not is_ours and PREFIX not in str(error_path):
            if os_error.errno not in _NEVER_FROM_READING:
                return None
            place = error_path
    return UserError(
        f"{place}: cannot be written: {os_error.strerror}. No partial file was left. To continue, "
        f"{_REMEDIES[os_error.errno]} and run the same command again."
    )


_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")

# What the user should do, by error number. Only the first four errors never come from reading a
# file.
_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some space in your disk quota",
    errno.EFBIG: "allow larger files (`ulimit -f`) or choose a file system that does,",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "correct the permissions",
    errno.EPERM: "correct the permissions or attributes (`lsattr`)",
    errno.EISDIR: "move that folder away",
    errno.ENOTDIR: "move away the file that is in the place of a folder",
    errno.EEXIST: "move away the file that is in the place of a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_NEVER_FROM_READING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _os_error(error: Exception) -> OSError | None:
    if isinstance(error, OSError):
        return error
    match = _RUST_OS_ERROR.search(str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
