import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowrank.data import sources
from lowrank.errors import UserError


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 20), ("test", 4)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 10, count, np.uint8)
    return arrays


def test_import_does_not_import_torch():
    code = "import sys, lowrank.data.folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_known_datasets():
    assert sources.DATASETS.keys() == {"cifar10", "fashion_mnist"}
    assert all(len(known.classes) == 10 for known in sources.DATASETS.values())


def store(folder, arrays):
    sources.store_dataset(folder, "cifar10", sources.CIFAR10_CLASSES, arrays)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stored_files(arrays, tmp_path):
    store(tmp_path / "made", arrays)
    files = content_of(tmp_path / "made")
    assert files.keys() == {"dataset.json", *(f"{key}.npy" for key in arrays)}
    for key, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        assert files[f"{key}.npy"] == file.getvalue()
    index = json.loads(files["dataset.json"])
    assert index["name"] == "cifar10"
    assert index["classes"] == list(sources.CIFAR10_CLASSES)
    for split, count in (("train", 20), ("test", 4)):
        parts = {
            part: hashlib.sha256(arrays[f"{split}_{part}"].tobytes()).hexdigest()
            for part in ("images", "labels")
        }
        assert index["splits"][split] == {"images": count, "sha256": parts}


def test_index_contains_outputs_in_the_order_of_the_classes(arrays, tmp_path):
    outputs = range(100, 110)
    sources.store_dataset(tmp_path / "made", "any", sources.CIFAR10_CLASSES, arrays, outputs)
    index = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert index["outputs"] == list(outputs)


def test_same_data_gives_the_same_bytes_and_replaces_the_old_dataset(arrays, tmp_path):
    folder = tmp_path / "made"
    store(folder, {key: array[::-1] for key, array in arrays.items()})
    store(tmp_path / "other", arrays)
    (folder / "stale").touch()
    store(folder, arrays)
    assert content_of(folder) == content_of(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "other"]


def test_folder_permissions_follow_the_umask(arrays, tmp_path):
    store(tmp_path / "made", arrays)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_link_is_kept_and_its_target_is_replaced(arrays, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    store(tmp_path / "link", arrays)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "dataset.json").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_changes_nothing(arrays, tmp_path, monkeypatch, existing):
    folder = tmp_path / "made"
    if existing:
        store(folder, arrays)
    before = content_of(folder) if existing else None

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="made: cannot be written: No space left"):
        store(folder, arrays)
    assert [path.name for path in tmp_path.iterdir()] == (["made"] if existing else [])
    if existing:
        assert content_of(folder) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_keeps_its_error_number(arrays):
    with pytest.raises(OSError, match="No space left") as caught:
        sources.write_array(Path("/dev/full"), arrays["train_images"])
    assert caught.value.errno == errno.ENOSPC


def test_failed_rename_restores_the_old_folder(arrays, tmp_path, monkeypatch):
    folder = tmp_path / "made"
    store(folder, arrays)
    before = content_of(folder)
    rename = Path.rename

    def fail_for_new(path, target):
        if path.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="Input/output error"):
        store(folder, arrays)
    assert content_of(folder) == before


def test_folder_with_other_files_is_not_replaced(arrays, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no dataset\.json"):
        store(tmp_path, arrays)
    with pytest.raises(UserError, match="is a file"):
        store(tmp_path / "notes.txt", arrays)
    assert (tmp_path / "notes.txt").read_text() == "mine"
