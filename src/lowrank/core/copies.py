"""Recognize that this process is one of several copies of a step that train together."""

from __future__ import annotations

import os

# PyTorch's launcher sets these variables: https://docs.pytorch.org/docs/stable/elastic/run.html
_RUN, _NUMBER, _COUNT = "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"


def copy_number() -> int | None:
    """Return the number of this copy, from 0; None in a process that is no copy."""
    return int(os.environ[_NUMBER]) if _RUN in os.environ else None


def copy_count() -> int:
    """Return the number of copies; 1 in a process that is no copy."""
    return int(os.environ[_COUNT]) if _RUN in os.environ else 1
