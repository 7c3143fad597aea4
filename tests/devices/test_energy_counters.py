"""Energy of a run, from counters in a simulated file system and with a simulated clock."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lowrank.devices.energy_counters import Battery, Rapl, find_counter, millijoules_of_a_run

CPU = "CPUExecutionProvider"


def zone(root, name, microjoules, label="package-0", span=10_000_000):
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def battery(root, **files):
    folder = root / "sys/class/power_supply/BAT0"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in ({"type": "Battery", "status": "Discharging"} | files).items():
        (folder / name).write_text(f"{value}\n")
    return folder


def laptop(root, package, platform):
    """Write the counters of a processor, a part of it, and the platform that contains both."""
    zone(root, "intel-rapl:0", package, "package-0")
    zone(root, "intel-rapl:0:0", package // 2, "core")
    zone(root, "intel-rapl:1", platform, "psys")


def test_the_platform_is_not_added_to_the_processors_that_it_contains(tmp_path):
    laptop(tmp_path, 1_000_000, 3_000_000)
    counter = Rapl(tmp_path)
    laptop(tmp_path, 2_000_000, 4_400_000)
    assert counter.joules() == pytest.approx(1.0)


def test_processors_are_summed_without_their_parts(tmp_path):
    def server(first, second):
        zone(tmp_path, "intel-rapl:0", first, "package-0")
        zone(tmp_path, "intel-rapl:0:0", first // 3, "dram")
        zone(tmp_path, "intel-rapl:1", second, "package-1")

    server(1_000_000, 2_000_000)
    counter = Rapl(tmp_path)
    server(1_500_000, 2_250_000)
    assert counter.joules() == pytest.approx(0.75)


def test_the_platform_is_counted_if_it_is_the_only_counter(tmp_path):
    zone(tmp_path, "intel-rapl:0", 1_000_000, "psys")
    counter = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1_400_000, "psys")
    assert counter.joules() == pytest.approx(0.4)


def test_a_counter_may_wrap_around(tmp_path):
    zone(tmp_path, "intel-rapl:0", 9_500_000)
    counter = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 500_000)
    assert counter.joules() == pytest.approx(1.0)
    zone(tmp_path, "intel-rapl:0", 700_000)
    assert counter.joules() == pytest.approx(1.2)


@pytest.mark.parametrize(
    "files",
    [{"power_now": 2_000_000}, {"current_now": -500_000, "voltage_now": 4_000_000}],
)
def test_a_battery_is_sampled(tmp_path, files):
    battery(tmp_path, **files)
    counter = Battery(tmp_path)
    start, before = time.perf_counter(), counter.joules()
    time.sleep(0.3)
    joules, elapsed = counter.joules() - before, time.perf_counter() - start
    assert joules == pytest.approx(2.0 * elapsed, rel=0.1)


def test_the_best_counter_is_chosen(tmp_path):
    assert find_counter(CPU, tmp_path) == "no RAPL counter, no battery"
    battery(tmp_path, status="Charging", power_now=1)
    assert "the battery is charging: unplug the device" in find_counter(CPU, tmp_path)
    battery(tmp_path, power_now=1)
    assert find_counter(CPU, tmp_path).name == "battery"
    zone(tmp_path, "intel-rapl:0", 1)
    assert find_counter(CPU, tmp_path).name == "RAPL"


def test_a_counter_without_read_permission_is_reported(tmp_path, monkeypatch):
    folder = zone(tmp_path, "intel-rapl:0", 1)

    def refuse(_):
        raise PermissionError(13, "Permission denied", str(folder / "energy_uj"))

    monkeypatch.setattr(Rapl, "_read", refuse)
    reason = find_counter(CPU, tmp_path)
    path = folder / "energy_uj"
    assert f"no permission to read {path}; run `sudo chmod a+r {path}`" in reason


def test_the_counter_of_a_gpu_is_read_through_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reason = find_counter("CUDAExecutionProvider", tmp_path)
    assert reason.startswith("NVML cannot be read")
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 5000 + handle,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    counter = find_counter("CUDAExecutionProvider", tmp_path)
    assert (counter.name, counter.joules()) == ("NVML", 5.0)


class FakeMachine:
    """A machine that consumes 2 W, and 10 W more while a model runs."""

    name = "fake"

    def __init__(self):
        self.now, self.energy = 0.0, 100.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.energy += 2.0 * seconds

    def joules(self):
        return self.energy

    def model(self, seconds):
        def run():
            self.now += seconds
            self.energy += 12.0 * seconds

        return run


def test_the_idle_consumption_is_subtracted():
    machine = FakeMachine()
    energies = millijoules_of_a_run(
        {"original": machine.model(0.25), "compressed": machine.model(0.125)},
        machine,
        seconds=2.0,
        clock=machine.clock,
        sleep=machine.sleep,
    )
    assert energies["idle_watts"] == pytest.approx(2.0)
    assert energies["original"] == pytest.approx(2500.0)
    assert energies["compressed"] == pytest.approx(1250.0)


def test_the_reason_is_reported_if_energy_is_not_measured():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lowrank.devices.energy_counters",
            "a",
            "b",
            '{"energy_seconds": 0}',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    reason = "`energy_seconds` is 0"
    assert answer == {"original": None, "compressed": None, "not_measured": reason}
