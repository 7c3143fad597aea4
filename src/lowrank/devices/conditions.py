"""Record the state of a machine during a measurement: load, clock, heat, other processes.

The figures come from Linux. A figure that is not available is None.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

# A measurement is unreliable if other processes or the host take more than these shares of a core.
_MAX_OTHER_CPU = 0.15
_MAX_STOLEN_CPU = 0.05


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counters of the machine and of this process at one moment.

    `wall` is the time in s. `own` is the processor time of this process in s. `busy` is the time
    that all cores together have worked, in s, and `stolen` the time that the host of a virtual
    machine has taken from them. `throttled` counts how often heat has slowed a core.
    """

    wall: float
    own: float
    busy: float | None
    stolen: float | None
    throttled: int | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> Snapshot:
        """Read the counters now."""
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
        """Return what happened between this snapshot and a later one.

        Returns
        -------
        dict
            `other_cpu` and `stolen_cpu`, the shares of one core that other processes and the host
            took; `throttled`, how often heat slowed a core. Each is None if not available.
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
    """Return the load, the frequency governor and the temperature of the hottest sensor in °C."""
    load = None
    with contextlib.suppress(OSError):
        load = os.getloadavg()[0]
    governor = None
    with contextlib.suppress(OSError):
        path = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
        governor = path.read_text().strip() or None
    sensors = [_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    # In thousandths of a degree. A sensor that is off reads 0 or less.
    degrees = [reading / 1000 for reading in sensors if reading is not None and reading > 0]
    return {
        "load": load,
        "governor": governor,
        "temperature_c": max(degrees) if degrees else None,
    }


def warnings_of(conditions: dict[str, Any]) -> list[str]:
    """Return the reasons, as texts for the user, why a measurement may be unreliable."""
    warnings = []
    if (conditions["other_cpu"] or 0) > _MAX_OTHER_CPU:
        warnings.append(f"other processes took {conditions['other_cpu']:.2f} of a core")
    if (conditions["stolen_cpu"] or 0) > _MAX_STOLEN_CPU:
        warnings.append(f"the host took {conditions['stolen_cpu']:.2f} of a core away")
    if conditions["throttled"]:
        warnings.append(f"heat slowed the processor {conditions['throttled']} times")
    if not conditions["settled"]:
        warnings.append("the latency of the models did not become stable during the warm-up")
    return warnings


def _cpu_seconds(root: Path) -> tuple[float | None, float | None]:
    """Return the time that all cores have worked and the time taken by the host, in s."""
    try:
        first = (root / "proc/stat").read_text().splitlines()[0].split()
        ticks = [int(field) for field in first[1:]]
        user, nice, system, _, _, interrupts, soft, stolen = ticks[:8]
    except (OSError, ValueError, IndexError):
        return None, None
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + interrupts + soft
    return busy / ticks_per_second, stolen / ticks_per_second


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
