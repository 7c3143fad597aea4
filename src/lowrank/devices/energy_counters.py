"""Program that measures the energy of one run of each of two models in a new process.

    python -m lowrank.devices.energy_counters ORIGINAL COMPRESSED SETTINGS

SETTINGS are the fields of `MeasureSettings` as JSON. The program prints a JSON object: `original`
and `compressed`, the energy of one run in mJ without the idle consumption of the machine, and
`counter`, the name of the energy counter. If no counter is available, both are null and
`not_measured` gives the reason. On failure it prints `error` with the message of a DeviceError.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import load_runner, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

# Time between two samples of a battery. Its gauge changes about once per second.
_SAMPLE_SECONDS = 0.1


class Counter(Protocol):
    """A counter of energy."""

    name: str

    def joules(self) -> float:
        """Return the energy in J since a fixed moment in the past. It never decreases."""


class Rapl:
    """The energy counters of Intel and AMD processors, read through Linux's powercap.

    If no processor has a counter, the counter of the whole platform (`psys`) is used. `root` is the
    root of the file system. Raises OSError if there is no counter or a counter cannot be read.
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
        """Return the energy of all processors in J since this object was created."""
        now = self._read()
        for value, last, span in zip(now, self._last, self._ranges):  # noqa: B905  (Python 3.10's)
            # The counter wraps around to 0.
            self._total += value - last if value >= last else value - last + span
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _disjoint_zones(root: Path) -> list[Path]:
    """Return counters that do not overlap: one for each processor.

    `intel-rapl:0` is a processor and `intel-rapl:0:1` is a part of it. `psys` is the whole platform
    and contains the processors, so it is used only if there is no other counter.
    """
    zones = sorted(root.glob("sys/class/powercap/*-rapl:*"))
    labels = {
        zone: (zone / "name").read_text().strip() for zone in zones if zone.name.count(":") == 1
    }
    processors = [zone for zone, label in labels.items() if not label.startswith("psys")]
    return processors or list(labels)


class Battery:
    """The energy that a battery delivers, sampled from its power or its current and voltage.

    `root` is the root of the file system. Raises OSError if there is no battery, it cannot be read,
    or it is not discharging.
    """

    name = "battery"

    def __init__(self, root: Path) -> None:
        self._folder = self._find(root)
        self._total = 0.0
        self._lock = threading.Lock()
        self._last = (time.perf_counter(), self._watts())
        threading.Thread(target=self._sample, daemon=True).start()

    def joules(self) -> float:
        """Return the energy in J delivered since this object was created."""
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
                    f"the battery is {status.lower()}: unplug the device, so that it runs on its "
                    "battery"
                )
            return folder
        raise FileNotFoundError("no battery")

    def _watts(self) -> float:
        def read(name: str) -> float:
            # In millionths. The sign of a discharge current depends on the driver.
            return abs(float((self._folder / name).read_text())) / 1e6

        if (self._folder / "power_now").exists():
            return read("power_now")
        return read("current_now") * read("voltage_now")

    def _add(self) -> None:
        with self._lock:
            last_time, last_watts = self._last
            self._last = now, watts = time.perf_counter(), self._watts()
            self._total += (now - last_time) * (watts + last_watts) / 2

    def _sample(self) -> None:
        while True:
            time.sleep(_SAMPLE_SECONDS)
            self._add()


class Nvml:
    """The energy counter of the first NVIDIA GPU.

    Raises ImportError if `pynvml` is not installed.
    """

    name = "NVML"

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._millijoules: Callable[[], int] = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(
            handle
        )
        self._millijoules()

    def joules(self) -> float:
        """Return the energy of the whole GPU in J since its driver was loaded."""
        return self._millijoules() / 1e3


def find_counter(provider: str, root: Path = Path("/")) -> Counter | str:
    """Return a counter for the energy of a provider on this machine.

    If there is none, return the reason as a text for the user.
    """
    if provider in _GPU_PROVIDERS:
        try:
            return Nvml()
        except Exception as error:  # The exceptions of pynvml do not derive from ImportError.
            return (
                f"NVML cannot be read ({error}); run `pip install nvidia-ml-py` on the device if "
                "it is missing"
            )
    reasons = []
    for kind, missing in (
        (Rapl, "no RAPL counter"),
        (Battery, "no battery"),
    ):
        try:
            return kind(root)
        except FileNotFoundError:
            reasons.append(missing)
        except PermissionError as error:
            # Linux lets only root read RAPL.
            reasons.append(
                str(error)
                if error.errno is None
                else f"no permission to read {error.filename}; run `sudo chmod a+r "
                f"{error.filename}`"
            )
        except (OSError, ValueError) as error:
            reasons.append(str(error))
    return ", ".join(reasons)


def millijoules_of_a_run(
    runs: Mapping[str, Callable[[], object]],
    counter: Counter,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, float]:
    """Return the energy of one run of each model without the idle consumption of the machine.

    Parameters
    ----------
    runs : dict
        Function that runs a model once, by the name of the model.
    counter : Counter
        Counter to read.
    seconds : float
        How long each model runs. The idle machine is measured for the same time before the first
        model and after the last one.
    clock, sleep : callable
        Functions that return the time in s and wait for a time in s.

    Returns
    -------
    dict
        Energy in mJ by the name of the model, and `idle_watts`.
    """

    def measure(work: Callable[[], int]) -> tuple[float, float, int]:
        start, before = clock(), counter.joules()
        count = work()
        return counter.joules() - before, clock() - start, count

    def wait() -> int:
        sleep(seconds)
        return 1

    def repeat(run: Callable[[], object]) -> int:
        count, end = 0, clock() + seconds
        while clock() < end:
            run()
            count += 1
        return count

    idles = [measure(wait)]
    measurements = {name: measure(partial(repeat, run)) for name, run in runs.items()}
    idles.append(measure(wait))
    watts = sum(joules for joules, _, _ in idles) / sum(elapsed for _, elapsed, _ in idles)
    return {
        **{
            # Not below 0: the resolution of a counter may exceed the energy of a small model.
            name: max(joules - watts * elapsed, 0.0) / count * 1e3
            for name, (joules, elapsed, count) in measurements.items()
        },
        "idle_watts": watts,
    }


def main(original: str, compressed: str, settings: str) -> None:
    """Measure the energy of both models and print it as JSON."""
    measure_settings = MeasureSettings.of(json.loads(settings))
    no_energy: dict[str, Any] = {"original": None, "compressed": None}
    if not measure_settings.energy_seconds:
        print(json.dumps({**no_energy, "not_measured": "`energy_seconds` is 0"}))
        return
    counter = find_counter(measure_settings.provider)
    if isinstance(counter, str):
        print(json.dumps({**no_energy, "not_measured": counter}))
        return
    try:
        paths = {"original": original, "compressed": compressed}
        runs = {name: load_runner(Path(path), measure_settings) for name, path in paths.items()}
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))
        return
    for run in runs.values():
        warm_up(run, seconds=measure_settings.warmup_seconds)
    energies = millijoules_of_a_run(runs, counter, seconds=measure_settings.energy_seconds)
    print(json.dumps({**energies, "counter": counter.name}))


if __name__ == "__main__":
    main(*sys.argv[1:])
