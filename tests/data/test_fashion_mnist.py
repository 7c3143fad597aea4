import gzip
import hashlib
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lowrank.data import fashion_mnist
from lowrank.data.fashion_mnist import obtain_fashion_mnist
from lowrank.errors import UserError

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def arrays(monkeypatch):
    """Create a Fashion-MNIST with 20 training and 4 test images, and set the expected digests."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 20), ("test", 4)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 28, 28, 1), np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 10, count, np.uint8)
    digests = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_SHA256", digests)
    return arrays


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """Return the folder of the Debian package, which is not installed; downloads fail."""
    folder = tmp_path / "usr" / "fashion-mnist"
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", folder)
    replace_torchvision(monkeypatch, lambda name: None)
    return folder


@pytest.fixture
def lines():
    return []


def idx(array):
    axes = array.shape[:3]  # images have no channels in the file
    return struct.pack(f">HBB{len(axes)}I", 0, 8, len(axes), *axes) + array.tobytes()


def write_files(folder, arrays, packed=True):
    folder.mkdir(parents=True)
    for key, name in NAMES.items():
        content = idx(arrays[key])
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


def replace_torchvision(monkeypatch, content_of):
    """Replace torchvision's download, which needs the network."""

    class FashionMNIST:
        mirrors = ("nowhere/",)
        resources = tuple((f"{name}.gz", "0") for name in NAMES.values())

    def download_url(url, root, filename, md5):
        content = content_of(url.removeprefix("nowhere/").removesuffix(".gz"))
        if content is None:
            raise OSError("no route to host")
        (Path(root) / filename).write_bytes(gzip.compress(content))

    modules = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.datasets": types.ModuleType("torchvision.datasets"),
        "torchvision.datasets.utils": types.ModuleType("torchvision.datasets.utils"),
    }
    modules["torchvision.datasets"].FashionMNIST = FashionMNIST
    modules["torchvision.datasets.utils"].download_url = download_url
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        assert arrays[key].dtype == np.uint8
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["fashion-mnist", "FashionMNIST/raw"])
def test_manual_copy(arrays, debian, lines, tmp_path, name, packed):
    write_files(tmp_path / "data" / name, arrays, packed)
    assert_same(obtain_fashion_mnist(tmp_path / "data", lines.append), arrays)
    assert len(lines) == 2
    assert all(name in line for line in lines)


def test_missing_file_is_named(arrays, debian, lines, tmp_path):
    write_files(tmp_path / "fashion-mnist", arrays)
    (tmp_path / "fashion-mnist/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"fashion-mnist: has neither t10k-labels-idx1-ubyte"):
        obtain_fashion_mnist(tmp_path, lines.append)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda content: content[:-20], "cannot be read as Fashion-MNIST"),
        (lambda content: b"rubbish", "not an IDX file of bytes"),
        (lambda content: b"", "cannot be read as Fashion-MNIST"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "train images have the SHA-256"),
    ],
)
def test_damaged_manual_copy(arrays, debian, lines, tmp_path, content, reason):
    write_files(tmp_path / "fashion-mnist", arrays)
    path = tmp_path / "fashion-mnist/train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content(idx(arrays["train_images"]))))
    with pytest.raises(UserError, match=f"{reason}.*Replace it with a new copy"):
        obtain_fashion_mnist(tmp_path, lines.append)


def test_debian_package_is_the_first_source(arrays, debian, lines, tmp_path):
    write_files(debian, arrays)
    assert_same(obtain_fashion_mnist(tmp_path / "data", lines.append), arrays)
    assert "data has no folder fashion-mnist or FashionMNIST/raw" in lines[0]
    assert "the Debian package dataset-fashion-mnist and verified" in lines[-1]


def test_torchvision_is_the_last_source(arrays, debian, lines, tmp_path, monkeypatch):
    write_files(debian, arrays | {"test_labels": arrays["test_labels"][::-1].copy()})
    by_name = {name: idx(arrays[key]) for key, name in NAMES.items()}
    replace_torchvision(monkeypatch, by_name.get)
    assert_same(obtain_fashion_mnist(tmp_path / "data", lines.append), arrays)
    assert any("Debian" in line and "test labels have the SHA-256" in line for line in lines)
    assert "torchvision's download (31 MB) and verified" in lines[-1]
    # The download is kept and used offline.
    replace_torchvision(monkeypatch, lambda name: None)
    assert_same(obtain_fashion_mnist(tmp_path / "data", lines.append), arrays)
    assert f"read from {tmp_path / 'data/fashion-mnist'} and verified" in lines[-1]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fashion-mnist"]


def test_no_source_is_available(debian, lines, tmp_path):
    with pytest.raises(UserError) as caught:
        obtain_fashion_mnist(tmp_path / "data", lines.append)
    message = str(caught.value)
    for part in ("is not installed", "no route to host", "Install the package", *NAMES.values()):
        assert part in message
    assert "\n" not in message
    assert len(lines) == 5


def test_digests_cover_every_array():
    assert fashion_mnist.FASHION_MNIST_SHA256.keys() == NAMES.keys()
    assert {len(digest) for digest in fashion_mnist.FASHION_MNIST_SHA256.values()} == {64}
    assert len(fashion_mnist.FASHION_MNIST_CLASSES) == 10
