"""One sitting of a measurement: a program, run afresh several times.

    python -m lowrank.devices.sitting ORIGINAL COMPRESSED SETTINGS

Where the memory of a model lies is luck that lasts as long as the process; several processes even
it out. SETTINGS are the fields of `MeasureSettings` as JSON. It prints a JSON object:
`nanoseconds`, as `nanoseconds_in_turns` returns them, `settled` and `conditions`; or `error` with
the message of a DeviceError.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lowrank.devices.conditions import Snapshot
from lowrank.devices.device import DeviceError, MeasureSettings
from lowrank.devices.runtime import load_runner, warm_up
from lowrank.devices.turns import nanoseconds_in_turns


def main(original: str, compressed: str, settings: str) -> None:
    """Measure, and print what was found."""
    asked = MeasureSettings.of(json.loads(settings))
    try:
        runners = [load_runner(Path(model), asked) for model in (original, compressed)]
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))
        return
    settled = [warm_up(run, seconds=asked.warmup_seconds) for run in runners]
    before = Snapshot.now()
    nanoseconds = nanoseconds_in_turns(
        *runners, runs=asked.turn_runs, repeats=asked.repeats, seconds=asked.seconds
    )
    conditions = before.until(Snapshot.now())
    print(
        json.dumps(
            {
                "nanoseconds": nanoseconds.tolist(),
                "settled": all(settled),
                "conditions": conditions,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
