"""Claim a GPU of this machine, so that two jobs of a user never use the same one by accident.

Snakemake does not tell a job which GPU it has. So a job locks a file for its GPU in the folder for
temporary files. The operating system releases the lock when the process ends.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from lowrank.core.copies import copy_number

# Not the folder of `tempfile`, which differs between jobs: each step has its own.
_FOLDER = Path("/tmp")
_SECONDS_BETWEEN_TRIES = 1.0

# GPUs that a run with several processes has claimed for them, by their indices: "0,1".
GPUS_VARIABLE = "LOWRANK_GPUS"

# A child of the logger that steps print.
_logger = logging.getLogger("lowrank.training.gpu_claim")


@functools.cache
def claimed_gpu() -> int:
    """Return the index of a CUDA device that no other job uses, and claim it for this process.

    If all are used, report that and wait. Later calls return the same index. In one of several
    processes of a run, it is the one that the run has claimed for the process.
    """
    if GPUS_VARIABLE in os.environ:
        return int(os.environ[GPUS_VARIABLE].split(",")[copy_number() or 0])
    return claimed_gpus(1)[0]


def claimed_gpus(count: int) -> list[int]:
    """Return the indices of `count` CUDA devices that no other job uses, and claim them."""
    identifiers = tuple(
        # Unlike the index, this does not depend on CUDA_VISIBLE_DEVICES.
        str(torch.cuda.get_device_properties(index).uuid)
        for index in range(torch.cuda.device_count())
    )
    return claim(identifiers, count, _FOLDER)


def claim(
    identifiers: tuple[str, ...],
    count: int,
    folder: Path,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Return the indices of the first `identifiers` whose locks in `folder` were free.

    Lock `count` of them, or none: two jobs that each hold a part would wait for each other. `sleep`
    is called between two tries with the seconds to wait.
    """
    has_said = False
    while True:
        free: dict[int, IO[str]] = {}
        for index, identifier in enumerate(identifiers):
            file = _locked(folder / f"lowrank-gpu-{getpass.getuser()}-{identifier}.lock")
            if file:
                free[index] = file
            if len(free) == count:
                _open_files.extend(free.values())
                return list(free)
        for file in free.values():
            file.close()
        if not has_said:
            used = len(identifiers) - len(free)
            _logger.info(
                "other jobs use %d of %d GPUs; waiting for %d", used, len(identifiers), count
            )
            has_said = True
        sleep(_SECONDS_BETWEEN_TRIES)


# Files that this process has locked. A file that is closed would lose its lock.
_open_files: list[IO[str]] = []


def _locked(path: Path) -> IO[str] | None:
    """Lock a file until it is closed and return it; None if another process has locked it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
