"""Claim a GPU of this machine, so that two jobs of a user never use the same one by accident.

Snakemake does not tell a job which GPU it has. So a job locks a file for its GPU in the folder for
temporary files. The operating system releases the lock when the process ends.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

# Not the folder of `tempfile`, which differs between jobs: each step has its own.
_FOLDER = Path("/tmp")
_SECONDS_BETWEEN_TRIES = 1.0

# A child of the logger that steps print.
_logger = logging.getLogger("lowrank.training.gpu_claim")


@functools.cache
def claimed_gpu() -> int:
    """Return the index of a CUDA device that no other job uses, and claim it for this process.

    If all are used, report that and wait. Later calls return the same index.
    """
    identifiers = tuple(
        # Unlike the index, this does not depend on CUDA_VISIBLE_DEVICES.
        str(torch.cuda.get_device_properties(index).uuid)
        for index in range(torch.cuda.device_count())
    )
    return claim(identifiers, _FOLDER)


def claim(
    identifiers: tuple[str, ...], folder: Path, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Return the index of the first of `identifiers` whose lock in `folder` was free, and lock it.

    `sleep` is called between two tries with the seconds to wait.
    """
    has_said = False
    while True:
        for index, identifier in enumerate(identifiers):
            if _locked(folder / f"lowrank-gpu-{getpass.getuser()}-{identifier}.lock"):
                return index
        if not has_said:
            _logger.info("other jobs use all %d GPUs; waiting for one", len(identifiers))
            has_said = True
        sleep(_SECONDS_BETWEEN_TRIES)


# Files that this process has locked. A file that is closed would lose its lock.
_open_files: list[IO[str]] = []


def _locked(path: Path) -> bool:
    """Lock a file until this process ends. Return whether it was free."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _open_files.append(file)
    return True
