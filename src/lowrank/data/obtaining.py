"""What the sources of the datasets have in common: attempts in turn, verification, downloads."""

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

# Seconds without an answer after which a download is given up: a machine without a network should
# get to the next source soon.
_SOCKET_TIMEOUT = 10


class UnusableError(Exception):
    """A source cannot be used; the message is the reason alone, without place or advice."""


@dataclass(frozen=True)
class Source:
    """A place that a dataset may come from.

    `fetch` gives the file or folder that `read` turns into arrays; it may write below the
    temporary folder that it is given. Both raise UnusableError. What was fetched is kept under the
    name `kept`, unless that is empty.
    """

    label: str
    fetch: Callable[[Path], Path]
    read: Callable[[Path], Arrays]
    kept: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a source has to deliver: the SHA-256 of each array's bytes in C order."""

    title: str
    sha256: Mapping[str, str]


def read_by_hand(wanted: Wanted, path: Path, read: Callable[[Path], Arrays], say: Say) -> Arrays:
    """Arrays from a file or folder that the user put there.

    Raises UserError when it is damaged or altered: a user who put it there wants it used.
    """
    say(f"trying {path}")
    try:
        arrays = _read_verified(wanted, path, read)
    except UnusableError as unusable:
        raise UserError(
            f"{path}: {unusable}. Replace it by a fresh copy, or remove it so that the other "
            "sources are tried, and run the same command again."
        ) from unusable
    say(f"{wanted.title} came from {path} and is verified")
    return arrays


def first_that_works(
    wanted: Wanted, sources: tuple[Source, ...], say: Say, *, keep: Path, before: str, advice: str
) -> Arrays:
    """Arrays from the first source that delivers what is wanted.

    What was downloaded is kept in the folder `keep` once it is verified, where the next call looks
    for files put there by hand: a dataset that was deleted is made again without a network. Each
    attempt and its outcome is told through `say`, one line each. When all fail, a UserError
    tells `before` (what was looked for first), each attempt, and `advice`.
    """
    tried = [before]
    say(before)
    for source in sources:
        say(f"trying {source.label}")
        try:
            with tempfile.TemporaryDirectory(prefix="lowrank-") as folder:
                fetched = source.fetch(Path(folder))
                arrays = _read_verified(wanted, fetched, source.read)
                if source.kept:
                    _keep(fetched, keep / source.kept, say)
        except UnusableError as unusable:
            tried.append(f"{source.label}: {unusable}")
            say(tried[-1])
        else:
            say(f"{wanted.title} came from {source.label} and is verified")
            return arrays
    reasons = " ".join(f"({number}) {reason}." for number, reason in enumerate(tried, 1))
    raise UserError(f"{wanted.title} could not be obtained. Tried: {reasons} {advice}")


@contextlib.contextmanager
def torchvisions_download(folder: Path) -> Iterator[None]:
    """Surround a download by torchvision: no progress bar, and its failures are UnusableError."""
    try:
        with _quiet(), _socket_timeout(_SOCKET_TIMEOUT):
            yield
    # Networks, proxies and a torchvision that does not fit its torch fail in many ways, and
    # another source is left to try; a full disk is no fault of the source.
    except Exception as error:
        if isinstance(error, OSError) and (told := cannot_write(folder.parent, error)):
            raise told from error
        raise UnusableError(
            f"the download failed ({type(error).__name__}: {one_line(str(error))})"
        ) from error


def sha256_of_array(array: NDArray) -> str:
    """SHA-256 of the bytes of an array in C order, in hexadecimal."""
    return hashlib.sha256(array.data).hexdigest()


def one_line(text: str) -> str:
    """A message without its line breaks."""
    return " ".join(text.split())


def _read_verified(wanted: Wanted, path: Path, read: Callable[[Path], Arrays]) -> Arrays:
    try:
        arrays = read(path)
    except UnusableError:
        raise
    # A damaged file can break tar, gzip, pickle, PNG and JSON readers in nearly any way.
    except Exception as error:
        raise UnusableError(
            f"cannot be read as {wanted.title} ({type(error).__name__}: {one_line(str(error))})"
        ) from error
    for key, expected in wanted.sha256.items():
        found = sha256_of_array(arrays[key])
        if found != expected:
            raise UnusableError(
                f"its {key.replace('_', ' ')} have the SHA-256 {found}, {wanted.title}'s have "
                f"{expected}"
            )
    return arrays


def _keep(fetched: Path, place: Path, say: Say) -> None:
    """Copy what was fetched to `place`, whole or not at all; a failure is said and is no error."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if fetched.is_dir():
            with temporary_folder(place.parent) as beside:
                new = beside / place.name
                new.mkdir()
                for file in fetched.iterdir():
                    shutil.copyfile(file, new / file.name)
                new.rename(place)
        else:
            with written_whole(place) as partial:
                shutil.copyfile(fetched, partial)
    except (OSError, UserError) as error:
        say(f"the download is not kept for another time: {one_line(str(error))}")
    else:
        say(f"the download is kept as {place}: from it the dataset is made again offline")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow another library's progress bar, which would garble the lines of a log."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
