"""Temporary folders of dead processes are removed, and nobody else's."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lowrank.files import written_whole
from lowrank.temporary import remove_leftovers, remove_leftovers_in, temporary_folder

KILLED = """
import os, signal, pathlib
from lowrank.files import written_whole
with written_whole("build/deep/factors.safetensors") as partial:
    partial.write_bytes(bytes(100_000))
    pathlib.Path(partial.parent, ".tmpAbC").write_bytes(bytes(100_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_known_and_removed(tmp_path: Path):
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    left = list((tmp_path / "build/deep").iterdir())
    # With what a library put beside the file.
    assert [len(list(path.iterdir())) for path in left] == [2]
    assert remove_leftovers([tmp_path / "build"]) == left
    assert list((tmp_path / "build/deep").iterdir()) == []


def test_what_a_living_process_writes_stays(tmp_path: Path):
    with written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        assert remove_leftovers([tmp_path]) == remove_leftovers_in(tmp_path) == []
        assert partial.exists()
    assert (tmp_path / "a.txt").read_text() == "half"


def test_a_number_that_a_younger_process_has_does_not_protect(tmp_path: Path):
    with temporary_folder(tmp_path) as folder:
        long_ago = time.time() - 10 * 24 * 3600
        os.utime(folder, (long_ago, long_ago))
        assert remove_leftovers_in(tmp_path) == [folder]


def test_what_another_machine_made_stays_for_a_day(tmp_path: Path):
    foreign = tmp_path / ".lowrank-otherhost-1234567-abcd"
    foreign.mkdir()
    assert remove_leftovers([tmp_path]) == []
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(foreign, (two_days_ago, two_days_ago))
    assert remove_leftovers([tmp_path]) == [foreign]


def test_names_that_are_not_ours_stay(tmp_path: Path):
    for name in (".lowrank-", ".lowrank-mine", "lowrank-vm-999999999-x", ".a-1234.partial"):
        (tmp_path / name).mkdir()
    assert remove_leftovers([tmp_path]) == []
