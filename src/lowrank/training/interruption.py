"""Delay signals that end a training run, so that its state is saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# SIGINT: Ctrl+C. SIGTERM: also what Slurm sends before the time of a job is over, or when another
# job takes its place.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers the first SIGINT or SIGTERM that arrives inside the block.

    Python may run a signal handler between any two lines, also while an optimizer updates weights.
    So the loop asks after each step whether a signal has `arrived`, saves its state and calls
    `deliver`. A second signal has its usual effect at once. Outside the main thread, where Python
    runs no handlers, signals keep their usual effect.

    One of several processes, which must end after the same step, ignores a second signal: a cluster
    signals all processes of a job, and so does the one that started them.
    """

    def __init__(self, *, ignores_second: bool = False) -> None:
        self.arrived: signal.Signals | None = None
        self._ignores_second = ignores_second
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._remember) for number in _SIGNALS
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def deliver(self) -> None:
        """Let the signal have its usual effect: by default, KeyboardInterrupt.

        The signal is SIGTERM if only another process has received one.
        """
        self._restore()
        signal.raise_signal(self.arrived or signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.arrived = signal.Signals(number)
        if not self._ignores_second:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
