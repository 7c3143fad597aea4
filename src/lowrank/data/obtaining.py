"""Download datasets: try several sources in order and verify their content."""

import contextlib
import hashlib
import io
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import UserError
from lowrank.files import cannot_write, written_whole
from lowrank.temporary import temporary_folder

Arrays = dict[str, NDArray[np.uint8]]
Say = Callable[[str], None]

# Timeout in seconds for a server that does not respond. It is short, so that a machine without a
# network soon tries the next source.
_SOCKET_TIMEOUT = 10


class UnusableError(Exception):
    """Error for a source that cannot be used. The message is only the reason, without advice."""


@dataclass(frozen=True)
class Source:
    """Source of a dataset.

    `fetch` returns a file or folder, and `read` reads arrays from it. `fetch` may write to the
    temporary folder that it gets as argument. Both raise UnusableError. The file or folder is kept
    with the name `kept`, unless that is empty.
    """

    label: str
    fetch: Callable[[Path], Path]
    read: Callable[[Path], Arrays]
    kept: str = ""


@dataclass(frozen=True)
class DatasetDigests:
    """Title of a dataset, and the expected SHA-256 of the bytes of each array in C order."""

    title: str
    sha256: Mapping[str, str]


def obtained(
    expected: DatasetDigests,
    manual_copies: Mapping[Path, Callable[[Path], Arrays]],
    sources: tuple[Source, ...],
    say: Say,
    *,
    keep: Path,
    before: str,
    advice: str,
) -> Arrays:
    """Read and verify arrays from a manual copy if there is one, or from the first usable source.

    Parameters
    ----------
    expected
        The dataset.
    manual_copies
        Files and folders where a user can put a copy, with a function that reads it. Others are
        not tried if one exists, because the user wants this one.
    sources
        The sources, in the order in which they are tried.
    say
        Called with one line for each attempt and each result.
    keep
        Folder in which a verified download is kept. The next call finds it there, so a deleted
        dataset can be stored again without a network.
    before
        The manual copies that were looked for, for messages.
    advice
        How to make a manual copy, for the message if all sources fail.

    Raises
    ------
    UserError
        If the manual copy is damaged or modified, or no source can be used.
    """
    for path, read in manual_copies.items():
        if path.exists():
            return _read_manual_copy(expected, path, read, say)
    return _first_usable(expected, sources, say, keep=keep, before=before, advice=advice)


def _read_manual_copy(
    expected: DatasetDigests, path: Path, read: Callable[[Path], Arrays], say: Say
) -> Arrays:
    """Read and verify arrays from a file or folder that the user put there."""
    say(f"trying {path}")
    try:
        arrays = _read_verified(expected, path, read)
    except UnusableError as unusable:
        raise UserError(
            f"{path}: {unusable}. Replace it with a new copy, or remove it to try the other "
            "sources. Then run the same command again."
        ) from unusable
    say(f"{expected.title}: read from {path} and verified")
    return arrays


def _first_usable(
    expected: DatasetDigests,
    sources: tuple[Source, ...],
    say: Say,
    *,
    keep: Path,
    before: str,
    advice: str,
) -> Arrays:
    """Read and verify arrays from the first source that can be used; the arguments of `obtained`.

    The message of UserError has `before`, all attempts and `advice`.
    """
    attempts = [before]
    say(before)
    for source in sources:
        say(f"trying {source.label}")
        try:
            with tempfile.TemporaryDirectory(prefix="lowrank-") as folder:
                fetched = source.fetch(Path(folder))
                arrays = _read_verified(expected, fetched, source.read)
                if source.kept:
                    _keep(fetched, keep / source.kept, say)
        except UnusableError as unusable:
            attempts.append(f"{source.label}: {unusable}")
            say(attempts[-1])
        else:
            say(f"{expected.title}: read from {source.label} and verified")
            return arrays
    reasons = " ".join(f"({number}) {reason}." for number, reason in enumerate(attempts, 1))
    raise UserError(f"{expected.title} cannot be obtained. Tried: {reasons} {advice}")


@contextlib.contextmanager
def torchvision_download(folder: Path) -> Iterator[None]:
    """Run a download of torchvision without progress bar, and turn failures into UnusableError."""
    try:
        with _silenced(), _socket_timeout(_SOCKET_TIMEOUT):
            yield
    # Networks, proxies and incompatible versions of torchvision and torch fail in many ways, and
    # the next source may work. A full disk is not a problem of the source.
    except Exception as error:
        if isinstance(error, OSError) and (write_error := cannot_write(folder.parent, error)):
            raise write_error from error
        raise UnusableError(
            f"the download failed ({type(error).__name__}: {one_line(str(error))})"
        ) from error


def sha256_of_array(array: NDArray) -> str:
    """Return the SHA-256 of the bytes of an array in C order, in hexadecimal."""
    return hashlib.sha256(array.data).hexdigest()


def one_line(text: str) -> str:
    """Return a message without line breaks."""
    return " ".join(text.split())


def _read_verified(expected: DatasetDigests, path: Path, read: Callable[[Path], Arrays]) -> Arrays:
    try:
        arrays = read(path)
    except UnusableError:
        raise
    # For a damaged file, readers of tar, gzip, pickle, PNG and JSON raise many types of errors.
    except Exception as error:
        raise UnusableError(
            f"cannot be read as {expected.title} ({type(error).__name__}: {one_line(str(error))})"
        ) from error
    for key, expected_sha256 in expected.sha256.items():
        sha256 = sha256_of_array(arrays[key])
        if sha256 != expected_sha256:
            raise UnusableError(
                f"its {key.replace('_', ' ')} have the SHA-256 {sha256}, expected {expected_sha256}"
            )
    return arrays


def _keep(download: Path, target: Path, say: Say) -> None:
    """Copy a download to `target`, atomically. A failure is only reported with `say`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if download.is_dir():
            with temporary_folder(target.parent) as temporary:
                new = temporary / target.name
                new.mkdir()
                for file in download.iterdir():
                    shutil.copyfile(file, new / file.name)
                new.rename(target)
        else:
            with written_whole(target) as partial:
                shutil.copyfile(download, partial)
    except (OSError, UserError) as error:
        say(f"the download cannot be kept for later use: {one_line(str(error))}")
    else:
        say(f"the download is kept as {target}; the dataset can be stored again from it offline")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hide the progress bar of another library, which would disturb the lines of a log."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
