"""Progress lines for long tasks: how much is done, and the remaining time."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lowrank.core.tensors import length

# A child of the logger that steps print. Programs that use lowrank as a library see no lines unless
# they configure this logger.
_logger = logging.getLogger("lowrank.core.progress")

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Count finished items and report them at most every five seconds.

    Shorter tasks report nothing.

    Parameters
    ----------
    total
        Number of items.
    unit
        Plural name of the items.
    """

    def __init__(self, total: int, unit: str = "images") -> None:
        self._total, self._unit = total, unit
        self._done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Add `count` finished items. Report if the last line is at least five seconds old."""
        self._done += count
        now = time.monotonic()
        if now - self._reported < SECONDS_BETWEEN_LINES or self._done >= self._total:
            return
        self._reported = now
        remaining = (now - self._started) / self._done * (self._total - self._done)
        _logger.info(
            "%d/%d %s (%d %%), %s left",
            self._done,
            self._total,
            self._unit,
            100 * self._done // self._total,
            clock_time(remaining),
        )


Batch = TypeVar("Batch")


def counted(batches: Iterable[Batch], total: int, unit: str = "images") -> Iterator[Batch]:
    """Yield the batches, and report how many of `total` items they held so far."""
    progress = Progress(total, unit)
    for batch in batches:
        yield batch
        progress.advance(length(batch))


def clock_time(seconds: float) -> str:
    """Format a duration as `minutes:seconds`, or as `hours:minutes:seconds` from one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
