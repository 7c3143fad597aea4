import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import pytest

from lowrank.errors import UserError
from lowrank.files import read_json, sha256_of, write_json, written_whole


@pytest.fixture
def full_disk(monkeypatch):
    """Every byte that is written to a partial file finds the disk full."""

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


def test_writes_into_a_folder_that_does_not_exist_yet(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with written_whole(path) as partial:
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_partial_file_stands_beside_and_keeps_the_name(tmp_path):
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


def test_full_disk_is_told_and_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "c.json"
    path.write_text("[]")
    with pytest.raises(UserError, match=r"c\.json: cannot be written: No space left on device"):
        write_json(path, [1, 2, 3])
    assert path.read_text() == "[]"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_folder_is_told(tmp_path, monkeypatch):
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
