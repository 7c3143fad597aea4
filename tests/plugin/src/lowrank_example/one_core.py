"""A device that measures on one chosen core of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from lowrank.devices import DeviceError, DeviceKind, setting
from lowrank.devices.local import LocalDevice


@dataclasses.dataclass(frozen=True)
class OneCoreSettings:
    """Which core is used."""

    core: int = setting("Number of the core, from 0.", ge=0)


class OneCoreDevice(LocalDevice):
    """This machine, with all measurements on one core.

    Raises DeviceError if this process may not use the core.
    """

    def __init__(self, name: str, settings: dict[str, Any], own: OneCoreSettings) -> None:
        super().__init__(name, settings)
        self._core = own.core
        allowed = sorted(os.sched_getaffinity(0))
        if own.core not in allowed:
            raise DeviceError(
                f"`core` is {own.core}, but this process may use only the cores "
                f"{', '.join(map(str, allowed))}. Choose one of them."
            )

    def measure(self, original, compressed, settings):
        """See `Device.measure`. The processes that measure use the same core as this one."""
        with self._on_core():
            return super().measure(original, compressed, settings)

    def node_times(self, model, settings):
        """See `Device.node_times`."""
        with self._on_core():
            return super().node_times(model, settings)

    def environment(self, settings):
        """See `Device.environment`."""
        return {**super().environment(settings), "core": self._core}

    @contextlib.contextmanager
    def _on_core(self) -> Iterator[None]:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


ONE_CORE = DeviceKind(
    "one_core",
    "this machine, with all measurements on one core.",
    OneCoreDevice,
    OneCoreSettings,
    measures_here=True,
)
