"""What a machine does while it measures: load, clocks, heat, and who else takes its processor.

Linux tells; where a figure is not to be had, it is None.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

# Above these shares of one core a measurement is not to be trusted.
_OTHERS = 0.15
_STOLEN = 0.05


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counters of the machine and of this process, at one moment.

    `busy` and `stolen` are seconds that all cores together worked, and that a host took from them;
    `own` those of this process; `throttled` how often heat has slowed a core.
    """

    wall: float
    own: float
    busy: float | None
    stolen: float | None
    throttled: int | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> Snapshot:
        """Of this moment."""
        busy, stolen = _cpu_seconds(root)
        counts = [
            _number(path)
            for path in root.glob(
                "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
            )
        ]
        known = [int(count) for count in counts if count is not None]
        return cls(
            wall=time.perf_counter(),
            own=time.process_time(),
            busy=busy,
            stolen=stolen,
            throttled=sum(known) if known else None,
        )

    def until(self, later: Snapshot) -> dict[str, Any]:
        """What happened between: shares of one core that others and the host took, and heat.

        Returns
        -------
        dict
            `other_cpu`, `stolen_cpu`, `throttled`; each None where the system does not tell.
        """
        wall = max(later.wall - self.wall, 1e-9)
        others = stolen = throttled = None
        if self.busy is not None and later.busy is not None:
            others = max(later.busy - self.busy - (later.own - self.own), 0.0) / wall
        if self.stolen is not None and later.stolen is not None:
            stolen = (later.stolen - self.stolen) / wall
        if self.throttled is not None and later.throttled is not None:
            throttled = later.throttled - self.throttled
        return {"other_cpu": others, "stolen_cpu": stolen, "throttled": throttled}


def state_of_machine(root: Path = Path("/")) -> dict[str, Any]:
    """Load before a measurement, the clock's governor, and the hottest sensor in °C."""
    load = None
    with contextlib.suppress(OSError):
        load = os.getloadavg()[0]
    governor = None
    with contextlib.suppress(OSError):
        path = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
        governor = path.read_text().strip() or None
    sensors = [_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    # Thousandths of a degree; a sensor that is off tells 0 or less.
    degrees = [each / 1000 for each in sensors if each is not None and each > 0]
    return {
        "load": load,
        "governor": governor,
        "temperature_c": max(degrees) if degrees else None,
    }


def warnings_of(conditions: dict[str, Any]) -> list[str]:
    """What speaks against a measurement, for a user."""
    found = []
    if (conditions["other_cpu"] or 0) > _OTHERS:
        found.append(f"other processes took {conditions['other_cpu']:.2f} of a core")
    if (conditions["stolen_cpu"] or 0) > _STOLEN:
        found.append(f"the host took {conditions['stolen_cpu']:.2f} of a core away")
    if conditions["throttled"]:
        found.append(f"heat slowed the processor {conditions['throttled']} times")
    if not conditions["settled"]:
        found.append("the models never ran evenly while they warmed up")
    return found


def _cpu_seconds(root: Path) -> tuple[float | None, float | None]:
    """Seconds that all cores have worked, and that a host took from them."""
    try:
        first = (root / "proc/stat").read_text().splitlines()[0].split()
        ticks = [int(each) for each in first[1:]]
        user, nice, system, _, _, interrupts, soft, stolen = ticks[:8]
    except (OSError, ValueError, IndexError):
        return None, None
    second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft) / second, stolen / second


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
