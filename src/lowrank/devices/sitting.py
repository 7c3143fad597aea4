"""Program that runs one sitting of a measurement in a new process.

    python -m lowrank.devices.sitting ORIGINAL COMPRESSED SETTINGS

The place of a model in memory affects its speed for as long as the process lives. Several
processes average this effect out. SETTINGS are the fields of `MeasureSettings` as JSON. The program
prints a JSON object: `nanoseconds` as `nanoseconds_in_turns` returns them, `settled` and
`conditions`; or `error` with the message of a DeviceError.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lowrank.devices.conditions import Snapshot
from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import load_runner, warm_up
from lowrank.devices.turns import nanoseconds_in_turns


def main(original: str, compressed: str, settings: str) -> None:
    """Measure both models and print the result as JSON."""
    measure_settings = MeasureSettings.of(json.loads(settings))
    try:
        runners = [load_runner(Path(model), measure_settings) for model in (original, compressed)]
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))
        return
    settled = [warm_up(run, seconds=measure_settings.warmup_seconds) for run in runners]
    before = Snapshot.now()
    nanoseconds = nanoseconds_in_turns(
        *runners,
        runs=measure_settings.turn_runs,
        repeats=measure_settings.repeats,
        seconds=measure_settings.seconds,
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
