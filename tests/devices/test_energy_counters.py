"""What a run takes, from counters in a made-up file system and by a made-up clock."""

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
    """One processor, a part of it, and the platform that contains both, in microjoules."""
    zone(root, "intel-rapl:0", package, "package-0")
    zone(root, "intel-rapl:0:0", package // 2, "core")
    zone(root, "intel-rapl:1", platform, "psys")


def test_the_platform_contains_the_processors_and_is_not_added(tmp_path):
    laptop(tmp_path, 1_000_000, 3_000_000)
    counter = Rapl(tmp_path)
    laptop(tmp_path, 2_000_000, 4_400_000)
    assert counter.joules() == pytest.approx(1.0)


def test_processors_are_added_up_and_their_parts_left_out(tmp_path):
    def server(first, second):
        zone(tmp_path, "intel-rapl:0", first, "package-0")
        zone(tmp_path, "intel-rapl:0:0", first // 3, "dram")
        zone(tmp_path, "intel-rapl:1", second, "package-1")

    server(1_000_000, 2_000_000)
    counter = Rapl(tmp_path)
    server(1_500_000, 2_250_000)
    assert counter.joules() == pytest.approx(0.75)


def test_the_platform_alone_is_counted(tmp_path):
    zone(tmp_path, "intel-rapl:0", 1_000_000, "psys")
    counter = Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1_400_000, "psys")
    assert counter.joules() == pytest.approx(0.4)


def test_a_counter_that_starts_again_goes_on(tmp_path):
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
    spent, passed = counter.joules() - before, time.perf_counter() - start
    assert spent == pytest.approx(2.0 * passed, rel=0.1)


def test_which_counter_tells(tmp_path):
    assert find_counter(CPU, tmp_path) == "no RAPL counter, no battery"
    battery(tmp_path, status="Charging", power_now=1)
    assert "the battery is charging: unplug the device" in find_counter(CPU, tmp_path)
    battery(tmp_path, power_now=1)
    assert find_counter(CPU, tmp_path).name == "battery"
    zone(tmp_path, "intel-rapl:0", 1)
    assert find_counter(CPU, tmp_path).name == "RAPL"


def test_a_counter_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    folder = zone(tmp_path, "intel-rapl:0", 1)

    def refuse(_):
        raise PermissionError(13, "Permission denied", str(folder / "energy_uj"))

    monkeypatch.setattr(Rapl, "_read", refuse)
    told = find_counter(CPU, tmp_path)
    assert f"energy_uj may not be read (`sudo chmod a+r {folder}/energy_uj`)" in told


def test_a_gpu_is_asked_through_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = find_counter("CUDAExecutionProvider", tmp_path)
    assert told.startswith("NVML does not tell")
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 5000 + handle,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    counter = find_counter("CUDAExecutionProvider", tmp_path)
    assert (counter.name, counter.joules()) == ("NVML", 5.0)


class FakeMachine:
    """Takes 2 W, and 10 W more while a model runs."""

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


def test_what_the_idle_machine_takes_is_left_out():
    machine = FakeMachine()
    found = millijoules_of_a_run(
        {"original": machine.model(0.25), "compressed": machine.model(0.125)},
        machine,
        seconds=2.0,
        clock=machine.clock,
        sleep=machine.sleep,
    )
    assert found["idle_watts"] == pytest.approx(2.0)
    assert found["original"] == pytest.approx(2500.0)
    assert found["compressed"] == pytest.approx(1250.0)


def test_where_nothing_counts_the_reason_is_told():
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
    told = json.loads(done.stdout)
    assert told == {"original": None, "compressed": None, "not_measured": "`energy_seconds` is 0"}
