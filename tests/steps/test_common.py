"""The parts that all steps share: progress, logs, errors, threads and locks."""

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time

import click
import pytest
from click.testing import CliRunner

from lowrank.errors import UserError
from lowrank.steps import common
from lowrank.steps.common import Step, readable_label, say, sole_builder_of, use_threads


def run(work, *arguments):
    """Run a step that calls `work`, with `arguments`."""

    @click.command(cls=Step, name="demo")
    def demo():
        work()

    return CliRunner().invoke(demo, arguments)


def fail_with(error):
    def work():
        say("a line of progress")
        raise error

    return work


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "demo.log"


def test_progress_goes_to_the_terminal_and_the_log(log):
    result = run(lambda: say("half done"), "--log", str(log))
    assert result.exit_code == 0
    assert result.stderr == "[demo] half done\n"
    assert result.stdout == ""
    assert log.read_text().endswith(" half done\n")


def test_a_label_replaces_the_name():
    assert run(lambda: say("half done"), "--label", "demo vgg16").stderr == (
        "[demo vgg16] half done\n"
    )


def test_a_log_contains_only_the_last_run(log):
    for line in ("first", "second"):
        run(lambda line=line: say(line), "--log", str(log))
    assert "first" not in log.read_text()
    assert "second" in log.read_text()


def test_an_error_of_the_user_is_reported_in_one_message(log, monkeypatch):
    monkeypatch.delenv("LOWRANK_TRACEBACK", raising=False)
    result = run(fail_with(UserError("a.json: no such file.")), "--log", str(log))
    assert result.exit_code == 1
    lines = ["a line of progress", "error: a.json: no such file."]
    assert result.stderr.splitlines() == [f"[demo] {line}" for line in lines]
    assert [line.partition(" ")[2] for line in log.read_text().splitlines()] == lines


def test_its_traceback_is_shown_if_requested(monkeypatch):
    monkeypatch.setenv("LOWRANK_TRACEBACK", "1")
    error = UserError("a.json: no such file.")
    result = run(fail_with(error))
    assert result.exception is error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_an_error_of_the_user(log, code):
    result = run(fail_with(OSError(code, "the reason", "some/file")), "--log", str(log))
    assert result.exit_code == 1
    assert "error: some/file: cannot be written: the reason" in result.stderr
    assert "Traceback" not in result.stderr + log.read_text()


def test_a_log_that_cannot_be_opened_is_an_error(log, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(log))

    monkeypatch.setattr("logging.FileHandler.__init__", refuse)
    result = run(lambda: None, "--log", str(log))
    assert result.exit_code == 1
    assert f"[demo] error: {log}: cannot be written: Permission denied" in result.stderr


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), OSError(errno.EIO, "oops")])
def test_the_log_contains_the_traceback_of_a_crash(log, error):
    result = run(fail_with(error), "--log", str(log))
    assert result.exception is error
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in log.read_text()
    assert f"{type(error).__name__}: " in log.read_text()


def test_a_package_of_an_extra_that_is_not_installed_is_named(log):
    error = ModuleNotFoundError("No module named 'torchvision'", name="torchvision.models")
    result = run(fail_with(error), "--log", str(log))
    assert result.exit_code == 1
    assert "error: the package `torchvision` is not installed" in result.stderr
    assert "`lowrank[workflow]`" in result.stderr
    assert "Traceback" not in result.stderr + log.read_text()


def test_a_module_of_no_extra_that_is_missing_is_a_crash(log):
    error = ModuleNotFoundError("No module named 'lowrank.typo'", name="lowrank.typo")
    assert run(fail_with(error), "--log", str(log)).exception is error


def test_an_interrupted_step_ends_with_status_130(log):
    result = run(fail_with(KeyboardInterrupt()), "--log", str(log))
    assert result.exit_code == 130
    assert "interrupted" in log.read_text()
    assert "Traceback" not in result.stderr + log.read_text()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("finetune method=tucker,model=vgg16,round=1", "finetune vgg16 tucker 1"),
        ("describe_device device=local", "describe_device local"),
        ("overview ", "overview"),
        ("finetune", "finetune"),
        ("", ""),
    ],
)
def test_labels_name_the_network_first(label, expected):
    assert readable_label(label) == expected


def test_the_threads_of_linear_algebra_are_set(monkeypatch):
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for variable in variables:
        monkeypatch.setenv(variable, "7")
    use_threads(3)
    assert [os.environ[variable] for variable in variables] == ["3", "3", "3"]


FREE_AND_ALLOCATE = """
import resource, sys
from lowrank.steps.common import reuse_memory
if sys.argv[1] == "reused":
    reuse_memory()
count = 2**26
for _ in range(3):
    b"1" * count
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"1" * count
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's mallopt")
def test_freed_memory_is_reused():
    faults = [
        int(subprocess.check_output([sys.executable, "-c", FREE_AND_ALLOCATE, mode]))
        for mode in ("default", "reused")
    ]
    assert faults[1] < 0.1 * faults[0]


HOLD = """
import sys
from pathlib import Path
from lowrank.steps.common import sole_builder_of
with sole_builder_of(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[2]).touch()
"""


@pytest.fixture
def holder(tmp_path):
    """Start another process that holds the lock until it reads a line or dies."""
    command = [sys.executable, "-c", HOLD, tmp_path / "deep" / "a.lock", tmp_path / "finished"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_waiting_for_another_process_is_reported(tmp_path, holder, monkeypatch):
    lines = []

    def release():
        holder.stdin.write("continue\n")
        holder.stdin.flush()

    def record(line):
        lines.append(line)
        threading.Timer(0.1, release).start()

    monkeypatch.setattr(common, "say", record)
    with sole_builder_of(tmp_path / "deep" / "a.lock"):
        assert (tmp_path / "finished").exists()
    assert len(lines) == 1
    assert "another run is building the same output" in lines[0]


def test_a_lock_ends_with_its_process(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(common, "say", lambda _: holder.kill())
    started = time.monotonic()
    with sole_builder_of(tmp_path / "deep" / "a.lock"):
        assert not (tmp_path / "finished").exists()
    assert time.monotonic() - started < 30


def test_taking_a_free_lock_prints_nothing(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(common, "say", lines.append)
    for _ in range(2):
        with sole_builder_of(tmp_path / "a.lock"):
            pass
    assert lines == []


def test_a_program_that_is_not_installed_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"`not-a-program` is not installed.*lowrank\[workflow\]"):
        common.run("not-a-program", "status")
