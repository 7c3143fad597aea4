"""Files that are written whole or not at all, and the errors of a full disk."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.errors import UserError
from lowrank.temporary import temporary_folder


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
    except OSError as error:
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


def cannot_write(path: Path, error: OSError) -> UserError | None:
    """The error to show when the disk is full or not writable; None for any other trouble."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return None
    return UserError(
        f"{path}: cannot be written: {error.strerror}. Nothing was left half-written; make room "
        "(or correct the permissions) and run the same command again."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
