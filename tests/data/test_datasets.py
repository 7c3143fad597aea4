import json
import shutil
import time

import numpy as np
import pytest
from tiny import write_tiny_dataset

from lowrank.data.datasets import open_dataset
from lowrank.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    write_tiny_dataset(folder, train=200, test=100)
    return folder


def test_splits_contain_every_image_once(folder):
    data = open_dataset(folder)
    assert (data.name, len(data.classes)) == ("tiny", 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 100)
    rows = np.concatenate([data.train.rows, data.validation.rows])
    assert sorted(rows) == list(range(200))
    assert sorted(data.test.rows) == list(range(100))


def test_images_are_memory_mapped(folder):
    data = open_dataset(folder)
    assert isinstance(data.train.images, np.memmap)
    assert data.train.images.shape == (200, 32, 32, 3)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64


def test_opening_is_fast_and_splits_are_reproducible(folder):
    start = time.perf_counter()
    first = open_dataset(folder)
    assert time.perf_counter() - start < 0.5
    np.testing.assert_array_equal(first.validation.rows, open_dataset(folder).validation.rows)


def test_sample_depends_only_on_its_seed(folder):
    test = open_dataset(folder).test
    first = test.sample(10)
    np.testing.assert_array_equal(first.rows, test.sample(10).rows)
    assert len(first) == 10
    assert set(first.rows) < set(test.rows)
    assert not np.array_equal(first.rows, test.sample(10, seed=1).rows)
    assert len(test.sample(1000)) == 100


def test_classes_are_separable(folder):
    data = open_dataset(folder)
    means = [data.train.images[data.train.labels == k].mean((0, 1, 2)) for k in range(10)]
    colors = data.test.images.mean((1, 2))
    nearest = np.linalg.norm(colors[:, None] - np.array(means), axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, data.test.labels)


def test_message_for_a_missing_folder_says_how_to_create_it(tmp_path):
    with pytest.raises(UserError, match=r"no stored dataset.*snakemake"):
        open_dataset(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["dataset.json", "train_images.npy", "test_labels.npy"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        open_dataset(folder)


def test_truncated_file_is_named(folder):
    path = folder / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"train_images\.npy: cannot be read"):
        open_dataset(folder)


def test_index_with_another_count_is_rejected(folder):
    index = json.loads((folder / "dataset.json").read_text())
    index["splits"]["test"]["images"] = 99
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"test split has 100 images.*says 99"):
        open_dataset(folder)


def test_very_few_images_have_a_validation_split(tmp_path):
    write_tiny_dataset(tmp_path / "few", train=4, test=2)
    data = open_dataset(tmp_path / "few")
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 1, 2)


def test_sample_keeps_the_outputs_of_the_split(folder):
    index = json.loads((folder / "dataset.json").read_text())
    index["outputs"] = list(range(20, 10, -1))
    (folder / "dataset.json").write_text(json.dumps(index))
    test = open_dataset(folder).test.sample(3)
    logits = np.arange(2 * 30).reshape(2, 30)
    np.testing.assert_array_equal(test.of_classes(logits), logits[:, 20:10:-1])


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"splits": {}}', '{"splits": {"train": 3}}']
)
def test_invalid_index_is_rejected(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json: not the index of a stored dataset"):
        open_dataset(tmp_path)


def test_empty_array_file(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "data")
    (tmp_path / "data/train_labels.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"train_labels\.npy: cannot be read as a NumPy array"):
        open_dataset(tmp_path / "data")
