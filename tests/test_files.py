import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lowrank.core.stored import write_tensors
from lowrank.data.sources import replaced_folder, write_array
from lowrank.errors import UserError
from lowrank.files import read_json, sha256_of, write_json, write_text, written_whole


@pytest.fixture
def full_disk(monkeypatch):
    """Make every write to a partial file fail with a full disk."""

    make_folder = tempfile.mkdtemp

    def on_full_disk(*arguments):
        folder = make_folder(*arguments)
        Path(folder, "c.json").symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", on_full_disk)


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def test_missing_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with written_whole(path) as partial:
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_partial_file_is_next_to_the_final_one_with_the_same_name(tmp_path):
    with written_whole(tmp_path / "c.npy") as partial:
        assert partial.parent.parent == tmp_path
        assert partial.name == "c.npy"
        assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "c.txt"
    path.write_text("old")

    def fail():
        with written_whole(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_reported_and_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "c.json"
    path.write_text("[]")
    with pytest.raises(UserError, match=r"c\.json: cannot be written: No space left on device"):
        write_json(path, [1, 2, 3])
    assert path.read_text() == "[]"
    assert list(tmp_path.iterdir()) == [path]


def limited(code: str, folder: Path, limit: int = 4096) -> subprocess.CompletedProcess:
    """Run code in `folder`, in a process with a limit on the size of its files."""
    set_limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", set_limit + textwrap.dedent(code)]
    # A measurement of coverage would also write files, and report that it cannot.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


BYTES = 300_000
WRITERS = {
    "safetensors": lambda path: write_tensors(path, {"a": np.zeros(BYTES // 4, np.float32)}),
    "json": lambda path: write_json(path, list(range(BYTES // 8))),
    "text": lambda path: write_text(path, "x" * BYTES),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_real_full_disk(small_disk, writer):
    path = small_disk / "some.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=r"some\.safetensors: cannot be written: No space left"):
        WRITERS[writer](path)
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


def test_a_dataset_on_a_real_full_disk(small_disk):
    with (
        pytest.raises(UserError, match=r"disk/data: cannot be written: No space left"),
        replaced_folder(small_disk / "data") as new,
    ):
        write_array(new / "a.npy", np.zeros(BYTES, np.uint8))
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    "write",
    [
        "write_tensors('a.bin', {'a': np.zeros(9999, np.float32)})",
        "write_json('a.bin', list(range(9999)))",
    ],
)
def test_a_file_above_the_size_limit(tmp_path, write):
    done = limited(
        f"""
        import numpy as np
        from lowrank.files import write_json
        from lowrank.core.stored import write_tensors
        {write}
        """,
        tmp_path,
    )
    assert "UserError: a.bin: cannot be written: File too large" in done.stderr
    assert "ulimit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_step_reports_the_error_without_a_traceback(tmp_path):
    done = limited(
        """
        import click
        from lowrank.steps.common import Step
        @click.command(cls=Step)
        def some():
            open("out.npy", "wb").write(bytes(100_000))
        some([])
        """,
        tmp_path,
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_that_cannot_be_written_does_not_stop_a_step(tmp_path):
    done = limited(
        """
        import click
        from lowrank.steps.common import Step, say
        @click.command(cls=Step)
        def some():
            for number in range(100):
                say("x" * 100)
            print("done")
        some(["--log", "some.log"])
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count("some.log: cannot be written") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_in_the_place_of_a_file(tmp_path, writer):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(UserError, match=r"a\.bin: cannot be written: Is a directory.*move that"):
        WRITERS[writer](tmp_path / "a.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_the_place_of_a_folder(tmp_path, writer):
    (tmp_path / "some").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be written: (File exists|Not a directory)"):
        WRITERS[writer](tmp_path / "some/a.bin")
    assert (tmp_path / "some").read_text() == "mine"


def test_an_immutable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", failing(errno.EPERM))
    with pytest.raises(UserError, match=r"c\.json: cannot be written: Operation not permitted"):
        write_json(tmp_path / "c.json", [])


def test_errors_of_reading_an_input_pass_through(tmp_path):
    def read_a_folder():
        with written_whole(tmp_path / "c.json"):
            (tmp_path / "input").read_text()

    (tmp_path / "input").mkdir()
    with pytest.raises(IsADirectoryError):
        read_a_folder()


def test_unwritable_folder_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", failing(errno.EACCES))
    with pytest.raises(UserError, match=r"c\.json: cannot be written: Permission denied"):
        write_json(tmp_path / "c.json", [])


def test_other_errors_pass_through(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "c.json", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "c.json", [])
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c.json").stat().st_mode) == mode


def test_json_round_trip(tmp_path):
    document = {"b": [1, 2.5, None], "a": {"ä": "x"}}
    write_json(tmp_path / "c.json", document)
    assert read_json(tmp_path / "c.json") == document
    assert (tmp_path / "c.json").read_bytes().endswith(b"}\n")


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "c.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.json: not a JSON document"):
        read_json(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"c\.json: no such file"):
        read_json(tmp_path / "c.json")


def test_sha256(tmp_path):
    path = tmp_path / "c.bin"
    content = bytes(range(256)) * 5000
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
