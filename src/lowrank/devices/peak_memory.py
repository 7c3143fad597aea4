"""Program that measures by how much one model raises the peak memory of a new process.

    python -m lowrank.devices.peak_memory MODEL SETTINGS

SETTINGS are the fields of `MeasureSettings` as JSON. The program prints a JSON object: `bytes`, or
`error` with the message of a DeviceError.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import load_runner

# ONNX Runtime allocates most of its memory during the first run. A few more runs reach the peak.
_RUNS = 5


def peak_bytes() -> int:
    """Return the largest resident set size of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # Only a fallback: on Linux, this value starts at the peak of the parent process.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(model: str, settings: str) -> None:
    """Load and run the model, and print the rise of the peak memory as JSON."""
    before = peak_bytes()
    try:
        run = load_runner(Path(model), MeasureSettings.of(json.loads(settings)))
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))
        return
    for _ in range(_RUNS):
        run()
    print(json.dumps({"bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
