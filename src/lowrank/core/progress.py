"""Progress lines of work that takes long: how much is done, and how long the rest will take."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

# A child of the logger that steps show; a program that uses lowrank as a library sees no lines
# unless it asks for them.
_logger = logging.getLogger("lowrank.core.progress")

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts items that are done and reports them at most every five seconds.

    Work that takes less than that stays silent.

    Parameters
    ----------
    total
        Number of items.
    unit
        Name of the items, plural.
    """

    def __init__(self, total: int, unit: str = "images") -> None:
        self._total, self._unit = total, unit
        self._done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Add `count` finished items, and report where the last line is five seconds old."""
        self._done += count
        now = time.monotonic()
        if now - self._reported < SECONDS_BETWEEN_LINES or self._done >= self._total:
            return
        self._reported = now
        left = (now - self._started) / self._done * (self._total - self._done)
        _logger.info(
            "%d/%d %s (%d %%), %s left",
            self._done,
            self._total,
            self._unit,
            100 * self._done // self._total,
            clock_time(left),
        )


Batch = TypeVar("Batch", bound=Sized)


def counted(batches: Iterable[Batch], total: int, unit: str = "images") -> Iterator[Batch]:
    """Yield the batches, and report how many of `total` items those so far held."""
    progress = Progress(total, unit)
    for batch in batches:
        yield batch
        progress.advance(len(batch))


def clock_time(seconds: float) -> str:
    """Format a duration as `minutes:seconds`, or `hours:minutes:seconds` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
