"""The state of a machine during a measurement."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank.devices.conditions import Snapshot, state_of_machine, warnings_of


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def stat(user: int, stolen: int, *, nice: int = 5, interrupts: int = 3, idle: int = 1000) -> str:
    first = f"cpu  {user} {nice} 10 {idle} 7 {interrupts} 2 {stolen} 0 0"
    return f"{first}\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


def test_time_taken_by_other_processes_and_the_host(tmp_path):
    before = replace(Snapshot.now(write(tmp_path, proc__stat=stat(100, 0))), wall=0.0, own=1.0)
    after = replace(Snapshot.now(write(tmp_path, proc__stat=stat(500, 50))), wall=2.0, own=3.0)
    conditions = before.until(after)
    # A tick is 10 ms: 4 s of work in a wall time of 2 s, of which 2 s belong to this process.
    assert conditions["other_cpu"] == pytest.approx(1.0)
    assert conditions["stolen_cpu"] == pytest.approx(0.25)
    assert conditions["throttled"] is None


def test_processes_of_low_priority_and_interrupts_count_but_idle_time_does_not(tmp_path):
    before = replace(Snapshot.now(write(tmp_path, proc__stat=stat(0, 0))), wall=0.0, own=0.0)
    text = stat(0, 0, nice=105, interrupts=53, idle=9000)
    after = replace(Snapshot.now(write(tmp_path, proc__stat=text)), wall=1.0, own=0.0)
    assert before.until(after)["other_cpu"] == pytest.approx(1.5)


def test_throttling_is_summed_over_all_cores(tmp_path):
    name = "sys__devices__system__cpu__{}__thermal_throttle__core_throttle_count"
    before = Snapshot.now(write(tmp_path, **{name.format("cpu0"): "3", name.format("cpu1"): "1"}))
    after = Snapshot.now(write(tmp_path, **{name.format("cpu1"): "4"}))
    assert before.until(after)["throttled"] == 3


def test_a_system_without_counters(tmp_path):
    conditions = Snapshot.now(tmp_path).until(Snapshot.now(tmp_path))
    assert conditions == {"other_cpu": None, "stolen_cpu": None, "throttled": None}
    state = state_of_machine(tmp_path)
    assert state["governor"] is None
    assert state["temperature_c"] is None
    assert warnings_of(conditions | {"settled": True}) == []


def test_the_governor_and_the_hottest_sensor(tmp_path):
    write(
        tmp_path,
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="powersave\n",
        sys__class__thermal__thermal_zone0__temp="41000\n",
        sys__class__thermal__thermal_zone1__temp="67500\n",
        sys__class__thermal__thermal_zone2__temp="-1\n",
    )
    state = state_of_machine(tmp_path)
    assert state["governor"] == "powersave"
    assert state["temperature_c"] == 67.5


def test_a_sensor_that_is_off_reads_zero(tmp_path):
    write(tmp_path, sys__class__thermal__thermal_zone0__temp="0\n")
    assert state_of_machine(tmp_path)["temperature_c"] is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat here")
def test_a_process_that_takes_a_core_causes_a_warning():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        before = Snapshot.now()
        time.sleep(1.0)
        conditions = before.until(Snapshot.now())
    finally:
        busy.kill()
        busy.wait()
    assert conditions["other_cpu"] > 0.3
    warnings = warnings_of(conditions | {"settled": True})
    (warning,) = [text for text in warnings if "other" in text]
    assert warning.endswith("of a core")
