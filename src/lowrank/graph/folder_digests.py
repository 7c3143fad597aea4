"""Digests of folders of image files, by which a run notices that a dataset has changed."""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

# Above it files count by their names alone: the size and time of each of ImageNet's 1.3 million
# would take a quarter of a minute at every start, their names take about a second.
MOST_FILES_LOOKED_AT = 100_000


@functools.cache
def digest_of_folder(folder: str, most: int = MOST_FILES_LOOKED_AT) -> str:
    """Digest of the names, sizes and modification times of all files below a folder.

    Contents are not read. Of a folder with more than `most` files it covers the names alone, so
    that a file rewritten in place is not noticed there. A folder that is missing has a digest, too:
    the step that reads it says what is wrong.
    """
    names = sorted(_files_below(folder))
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
        if len(names) <= most:
            digest.update(_size_and_time(folder, name))
    return digest.hexdigest()[:16]


def _size_and_time(folder: str, name: str) -> bytes:
    try:
        found = Path(folder, name).stat()
    except OSError:  # A link to nowhere, or removed meanwhile.
        return b"gone"
    return f"{found.st_size} {found.st_mtime_ns}\0".encode()


def _files_below(folder: str, inside: str = "") -> Iterator[str]:
    try:
        entries = list(os.scandir(os.path.join(folder, inside)))  # noqa: PTH118  (a million files)
    except OSError:
        return
    for entry in entries:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.is_dir():
            yield from _files_below(folder, name)
        else:
            yield name
