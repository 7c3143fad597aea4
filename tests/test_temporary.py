"""Only temporary folders of dead processes are removed."""

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


def test_files_of_a_killed_process_are_removed(tmp_path: Path):
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    leftovers = list((tmp_path / "build/deep").iterdir())
    # The folder also contains a temporary file of a library.
    assert [len(list(path.iterdir())) for path in leftovers] == [2]
    assert remove_leftovers([tmp_path / "build"]) == leftovers
    assert list((tmp_path / "build/deep").iterdir()) == []


def test_files_of_a_living_process_are_kept(tmp_path: Path):
    with written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        assert remove_leftovers([tmp_path]) == remove_leftovers_in(tmp_path) == []
        assert partial.exists()
    assert (tmp_path / "a.txt").read_text() == "half"


def test_a_folder_is_removed_if_a_later_process_reuses_its_number(tmp_path: Path):
    with temporary_folder(tmp_path) as folder:
        long_ago = time.time() - 10 * 24 * 3600
        os.utime(folder, (long_ago, long_ago))
        assert remove_leftovers_in(tmp_path) == [folder]


def test_folders_of_another_machine_are_kept_for_a_day(tmp_path: Path):
    foreign = tmp_path / ".lowrank-otherhost-1234567-abcd"
    foreign.mkdir()
    assert remove_leftovers([tmp_path]) == []
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(foreign, (two_days_ago, two_days_ago))
    assert remove_leftovers([tmp_path]) == [foreign]


def test_folders_with_other_names_are_kept(tmp_path: Path):
    for name in (".lowrank-", ".lowrank-mine", "lowrank-vm-999999999-x", ".a-1234.partial"):
        (tmp_path / name).mkdir()
    assert remove_leftovers([tmp_path]) == []
