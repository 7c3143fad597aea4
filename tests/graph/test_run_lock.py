"""One run at a time in a folder, even if its processes die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank.errors import UserError
from lowrank.graph.run_lock import LOCK, current_run, held_lock, take_lock

HOLDER = """
import subprocess, sys, time
from lowrank.graph.run_lock import take_lock
run = take_lock(lambda line: print(line, flush=True))
if "child" in sys.argv:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[run.descriptor])
    print("child", child.pid, flush=True)
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that starts a process with the lock. All processes end with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOWRANK_RUN", raising=False)
    started, other_pids = [], []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    begin.others = other_pids
    yield begin
    for process in started:
        process.kill()
        process.communicate()
    for pid in other_pids:
        os.kill(pid, signal.SIGKILL)


def test_a_second_run_waits_and_reports_the_owner_of_the_lock(start):
    first = start()
    assert first.stdout.readline() == "holds\n"
    second = start()
    message = second.stdout.readline()
    for part in (f"process {first.pid} on ", "`-c`", "since 20", "Waiting", "LOWRANK_LOCK=fail"):
        assert part in message
    first.kill()
    assert second.stdout.readline() == "holds\n"


def test_a_second_run_fails_immediately_if_requested(start):
    first = start()
    first.stdout.readline()
    second = start(LOWRANK_LOCK="fail")
    assert second.wait(timeout=60) == 1
    assert f"another run uses this folder: process {first.pid}" in second.stderr.read()


def test_a_killed_run_needs_no_unlocking(start):
    first = start()
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(LOWRANK_LOCK="fail").stdout.readline() == "holds\n"


def test_a_step_that_outlives_its_run_still_holds_the_lock(start):
    first = start("child")
    child = int(first.stdout.readline().split()[1])
    first.stdout.readline()
    first.kill()
    first.wait()
    second = start()
    assert "a step that it started is still running" in second.stdout.readline()
    os.kill(child, signal.SIGKILL)
    assert second.stdout.readline() == "holds\n"


def test_after_a_lock_file_was_removed_the_next_run_makes_a_new_one(start):
    first = start()
    first.stdout.readline()
    LOCK.unlink()
    second = start()
    assert second.stdout.readline() == "holds\n"
    third = start(LOWRANK_LOCK="fail")
    assert third.wait(timeout=60) == 1
    assert f"process {second.pid}" in third.stderr.read()


def test_a_process_of_the_run_shares_its_lock(start):
    with held_lock(print) as run:
        assert take_lock(print) == run == current_run()
    assert current_run() is None


def test_a_run_named_in_the_environment_is_ignored_without_its_lock(start, monkeypatch):
    monkeypatch.setenv("LOWRANK_RUN", f"{os.getpid()}:0")
    assert current_run() is None


def test_an_unknown_choice_is_refused(start, monkeypatch):
    monkeypatch.setenv("LOWRANK_LOCK", "maybe")
    with pytest.raises(UserError, match="LOWRANK_LOCK=maybe: expected `wait` or `fail`"):
        take_lock(print)


STEP = """
import sys, time, tempfile, pathlib, signal
from lowrank.steps.ending import ends_cleanly
from lowrank.temporary import temporary_folder
try:
    with ends_cleanly(lambda line: print(line, flush=True)), temporary_folder(pathlib.Path(".")):
        pathlib.Path(tempfile.mkdtemp(), "half").write_bytes(bytes(5000))
        print("works", tempfile.gettempdir(), flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("ended", flush=True)
"""

RUN_WITH_A_STEP = f"""
import subprocess, sys, time
from lowrank.graph.run_lock import take_lock
run = take_lock(print)
subprocess.Popen([sys.executable, "-c", {STEP!r}], pass_fds=[run.descriptor])
time.sleep(60)
"""


def test_a_step_ends_with_the_run_that_started_it_and_tidies_up(start, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN_WITH_A_STEP], stdout=subprocess.PIPE, text=True
    )
    try:
        _, scratch = run.stdout.readline().split()
        assert list(tmp_path.glob(".lowrank-*"))
        run.kill()
        assert f"has ended (process {run.pid})" in run.stdout.readline()
        assert run.stdout.readline() == "ended\n"
    finally:
        run.kill()
        run.communicate()
    assert not Path(scratch).exists()
    assert not list(tmp_path.glob(".lowrank-*"))
    with held_lock(print):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_receives_a_signal_tidies_up(start, tmp_path, number):
    step = subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, text=True)
    try:
        _, scratch = step.stdout.readline().split()
        step.send_signal(number)
        assert step.stdout.readline() == "ended\n"
        assert step.wait(timeout=60) == 0
    finally:
        step.kill()
        step.communicate()
    assert not Path(scratch).exists()
    assert not list(tmp_path.glob(".lowrank-*"))


def test_the_wait_is_short_once_the_lock_is_free(start):
    first = start()
    first.stdout.readline()
    second = start()
    second.stdout.readline()
    first.kill()
    first.wait()
    begin = time.monotonic()
    second.stdout.readline()
    assert time.monotonic() - begin < 10
