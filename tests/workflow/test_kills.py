"""Killed runs, and two runs at once. `benchmarks/kill_test.py` repeats this 200 times."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from projects import RESULT, ROOT, Project

sys.path.insert(0, str(ROOT / "benchmarks"))

import kill_test


@pytest.mark.slow
def test_killed_runs_and_simultaneous_runs_damage_no_files(built_once: Project, built: Project):
    built.run("rm", "-rf", *kill_test.MADE)
    kills = kill_test.kill_runs(built, kills=8, seconds=20, chance=random.Random(1))
    assert sum(kills.values()) == 8
    kill_test.run_pairs(built, 1)
    built.snakemake()
    assert kill_test.differences(built_once, built) == []


def test_temporary_files_of_a_killed_process_are_not_added_to_the_cache(built: Project):
    factors = built.folder / "build/resnet20/tucker/first/factors"
    leftover = factors / ".lowrank-vm-999999999-abcd"
    leftover.mkdir()
    (leftover / "conv.safetensors").write_bytes(bytes(10_000))
    built.run("dvc", "commit", "--force", "decompose")
    assert kill_test.foreign_in_cache(built) == []
    cached = built.folder.glob(".dvc/cache/files/md5/*/*")
    assert all(path.stat().st_size != 10_000 for path in cached)


def test_read_only_options_work_during_another_run(project: Project, tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import time; from lowrank.graph.run_lock import take_lock;"
         " run = take_lock(print); print('holds', flush=True); time.sleep(600)"],
        cwd=project.folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "holds\n"
        for options in (["--dry-run", RESULT], ["--rulegraph", "dot"], ["--summary"]):
            project.snakemake(*options)
        command = ("env", "LOWRANK_LOCK=fail", "snakemake", "--cores", "1", RESULT)
        refused = project.run(*command, check=False)
        assert refused.returncode == 1
        assert f"another run uses this folder: process {holder.pid}" in refused.stdout
    finally:
        holder.kill()
        holder.communicate()


RUN_WITH_SIGNAL_HANDLERS = """
import os, signal, subprocess, sys, time
from lowrank.graph.snakemake_run import end_steps_on_signal
def snakemakes_own(*_):
    print("own handler", flush=True)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, snakemakes_own)
end_steps_on_signal(lambda line: print(line, flush=True))
step = subprocess.Popen(["bash", "-c", "set -e; ./lowrank; true"])
while not os.path.exists("started"):
    time.sleep(0.05)
print("runs", flush=True)
step.wait()
print("step ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_snakemake_ends_the_steps(tmp_path: Path, number):
    program = tmp_path / "lowrank"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, time\n"
        "pathlib.Path('started').touch()\ntime.sleep(600)\n"
    )
    program.chmod(0o755)
    run = subprocess.Popen(
        [sys.executable, "-c", RUN_WITH_SIGNAL_HANDLERS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stdout.readline() == "runs\n"
        run.send_signal(number)
        assert f"{number.name}: ending 1 running steps" in run.stdout.readline()
        assert run.stdout.readline() == "own handler\n"
        assert run.stdout.readline() == "step ended\n"
    finally:
        run.kill()
        run.communicate()
