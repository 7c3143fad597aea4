"""What a run takes from the socket or the battery: a program, run afresh for a pair of models.

    python -m lowrank.devices.energy_counters ORIGINAL COMPRESSED SETTINGS

SETTINGS are the fields of `MeasureSettings` as JSON. It prints a JSON object: `original` and
`compressed` in mJ of one run, less what the machine takes when idle, and the `counter` that told;
where there is none, both are null and `not_measured` says why. Or `error` with the message of a
DeviceError.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lowrank.devices.device import DeviceError, MeasureSettings
from lowrank.devices.runtime import load_runner, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable

_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

# Between looks at a battery, whose gauge changes about once a second.
_SAMPLE_SECONDS = 0.1


class Counter(Protocol):
    """Something that counts energy."""

    name: str

    def joules(self) -> float:
        """Since some moment in the past; it never falls."""


class Rapl:
    """Intel's and AMD's counters of whole processors, through Linux's powercap.

    Where there is none of a processor, that of the whole platform (`psys`).

    Parameters
    ----------
    root : Path
        Of the file system.

    Raises
    ------
    OSError
        Where a counter is not to be read.
    """

    name = "RAPL"

    def __init__(self, root: Path) -> None:
        self._zones = _disjoint_zones(root)
        if not self._zones:
            raise FileNotFoundError("no powercap zone")
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._read()
        self._total = 0

    def joules(self) -> float:
        """Of all processors."""
        now = self._read()
        for value, last, span in zip(now, self._last, self._ranges):  # noqa: B905  (Python 3.10's)
            # The counter starts again from 0 at its end.
            self._total += value - last if value >= last else value - last + span
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _disjoint_zones(root: Path) -> list[Path]:
    """Return the counters of which none contains another: one for each processor.

    `intel-rapl:0` is a processor and `intel-rapl:0:1` a part of it. Beside them may stand `psys`,
    the whole platform, which contains the processors: it counts only where it is alone.
    """
    zones = sorted(root.glob("sys/class/powercap/*-rapl:*"))
    labels = {
        zone: (zone / "name").read_text().strip() for zone in zones if zone.name.count(":") == 1
    }
    processors = [zone for zone, label in labels.items() if not label.startswith("psys")]
    return processors or list(labels)


class Battery:
    """What a battery gives, from its gauge's power or current and voltage, sampled.

    `root` as for `Rapl`; OSError likewise, also where the battery is being charged.
    """

    name = "battery"

    def __init__(self, root: Path) -> None:
        self._folder = self._find(root)
        self._total = 0.0
        self._lock = threading.Lock()
        self._last = (time.perf_counter(), self._watts())
        threading.Thread(target=self._sample, daemon=True).start()

    def joules(self) -> float:
        """Sampled until now."""
        self._add()
        return self._total

    @staticmethod
    def _find(root: Path) -> Path:
        for folder in sorted(root.glob("sys/class/power_supply/*")):
            try:
                kind = (folder / "type").read_text().strip()
                status = (folder / "status").read_text().strip()
            except OSError:
                continue
            if kind != "Battery":
                continue
            if status != "Discharging":
                raise PermissionError(
                    f"the battery is {status.lower()}: unplug the device, so that it gives what "
                    "the device takes"
                )
            return folder
        raise FileNotFoundError("no battery")

    def _watts(self) -> float:
        def read(name: str) -> float:
            # Millionths; drivers differ in the sign of what is given.
            return abs(float((self._folder / name).read_text())) / 1e6

        if (self._folder / "power_now").exists():
            return read("power_now")
        return read("current_now") * read("voltage_now")

    def _add(self) -> None:
        with self._lock:
            then, before = self._last
            self._last = now, watts = time.perf_counter(), self._watts()
            self._total += (now - then) * (watts + before) / 2

    def _sample(self) -> None:
        while True:
            time.sleep(_SAMPLE_SECONDS)
            self._add()


class Nvml:
    """The counter of an NVIDIA GPU, the first. Raises ImportError without its library."""

    name = "NVML"

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._millijoules = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        self._millijoules()

    def joules(self) -> float:
        """Of the whole GPU."""
        return self._millijoules() / 1e3


def find_counter(provider: str, root: Path = Path("/")) -> Counter | str:
    """What counts the energy of a provider here; or why nothing does, for a user."""
    if provider in _GPU_PROVIDERS:
        try:
            return Nvml()
        except Exception as error:  # its own exceptions share no base with ImportError
            return f"NVML does not tell ({error}); `pip install nvidia-ml-py` on the device"
    because = []
    for kind, missing in (
        (Rapl, "no RAPL counter"),
        (Battery, "no battery"),
    ):
        try:
            return kind(root)
        except FileNotFoundError:
            because.append(missing)
        except PermissionError as error:
            # Linux lets only root read RAPL.
            because.append(
                str(error)
                if error.errno is None
                else f"{error.filename} may not be read (`sudo chmod a+r {error.filename}`)"
            )
        except (OSError, ValueError) as error:
            because.append(str(error))
    return ", ".join(because)


def millijoules_of_a_run(
    runs: dict[str, Callable[[], object]],
    counter: Counter,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, float]:
    """Energy of one run of each model, less what the machine takes when idle.

    Parameters
    ----------
    runs : dict
        By the name of a model, what runs it once.
    counter : Counter
        What tells.
    seconds : float
        How long each model runs, and how long the machine is left alone before and after all.
    clock, sleep : callable
        The time in s, and waiting.

    Returns
    -------
    dict
        mJ by model, and `idle_watts`.
    """

    def spent(work: Callable[[], int]) -> tuple[float, float, int]:
        start, before = clock(), counter.joules()
        count = work()
        return counter.joules() - before, clock() - start, count

    def idle() -> int:
        sleep(seconds)
        return 1

    def repeated(run: Callable[[], object]) -> int:
        count, end = 0, clock() + seconds
        while clock() < end:
            run()
            count += 1
        return count

    idles = [spent(idle)]
    found = {name: spent(lambda run=run: repeated(run)) for name, run in runs.items()}
    idles.append(spent(idle))
    watts = sum(each[0] for each in idles) / sum(each[1] for each in idles)
    return {
        **{
            # A counter's step may be more than a small model takes.
            name: max(joules - watts * passed, 0.0) / count * 1e3
            for name, (joules, passed, count) in found.items()
        },
        "idle_watts": watts,
    }


def main(original: str, compressed: str, settings: str) -> None:
    """Measure, and print what was found."""
    asked = MeasureSettings.of(json.loads(settings))
    nothing: dict[str, Any] = {"original": None, "compressed": None}
    if not asked.energy_seconds:
        print(json.dumps({**nothing, "not_measured": "`energy_seconds` is 0"}))
        return
    counter = find_counter(asked.provider)
    if isinstance(counter, str):
        print(json.dumps({**nothing, "not_measured": counter}))
        return
    try:
        paths = {"original": original, "compressed": compressed}
        runs = {name: load_runner(Path(path), asked) for name, path in paths.items()}
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))
        return
    for run in runs.values():
        warm_up(run, seconds=asked.warmup_seconds)
    found = millijoules_of_a_run(runs, counter, seconds=asked.energy_seconds)
    print(json.dumps({**found, "counter": counter.name}))


if __name__ == "__main__":
    main(*sys.argv[1:])
