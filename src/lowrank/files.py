"""Files that are written whole or not at all, and the errors of a full disk."""

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
    """Yield a path to write to, of the same name; rename it onto `path` when the block succeeds.

    It is in a temporary folder beside `path`, which takes in what libraries put beside a file
    while they write it. A process that dies inside the block leaves `path` as it was. Raises
    UserError when the disk is full or the folder cannot be written.
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
        if told := cannot_write(path, error):
            raise told from error
        raise


def write_json(path: str | os.PathLike, document: Any) -> None:
    """Write a JSON document whole, indented, with a final newline."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as partial:
        partial.write_text(text)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON document; a missing or damaged file is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a JSON document ({error}). Delete it and run the same command again."
        ) from error


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: Exception) -> UserError | None:
    """The error to show when a file cannot be written; None for any other trouble.

    `path` is what was being written, where the error names no file of its own. Errors of libraries
    in other languages, which are no OSError, are understood by the number that they state.
    """
    found = _os_error(error)
    if found is None or found.errno not in _WRITING:
        return None
    place = path
    if found.filename is not None:
        named = Path(os.fsdecode(found.filename))
        # Partial files have the final name, and folders above it are needed for it.
        is_ours = named.name == path.name or path.resolve().is_relative_to(named.resolve())
        if not is_ours and PREFIX not in str(named):
            if found.errno not in _ONLY_WRITING:
                return None
            place = named
    return UserError(
        f"{place}: cannot be written: {found.strerror}. Nothing was left half-written; "
        f"{_WRITING[found.errno]} and run the same command again."
    )


_OS_ERROR_OF_RUST = re.compile(r"\(os error (\d+)\)")

# What to do, by the number of the error. Only the first four never come from reading a file.
_WRITING = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "allow larger files (`ulimit -f`), or choose a file system that does,",
    errno.EROFS: "choose a folder that can be written,",
    errno.EACCES: "correct the permissions",
    errno.EPERM: "correct the permissions or attributes (`lsattr`)",
    errno.EISDIR: "move that folder away",
    errno.ENOTDIR: "move away the file that is where a folder is needed",
    errno.EEXIST: "move away the file that is where a folder is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _os_error(error: Exception) -> OSError | None:
    if isinstance(error, OSError):
        return error
    stated = _OS_ERROR_OF_RUST.search(str(error))
    return OSError(int(stated[1]), os.strerror(int(stated[1]))) if stated else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
