"""Files of arrays as a dataset: inputs that a network takes as they are."""

import json

import numpy as np
import pytest
import torch
from tiny import write_tiny_dataset

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.config.training import Augmentation
from lowrank.data.batches import AugmentedBatches, EvaluationBatches
from lowrank.data.datasets import open_dataset, require_images_match
from lowrank.data.input_arrays import store_arrays
from lowrank.data.splits import write_splits
from lowrank.errors import UserError
from lowrank.zoo.registry import InputForm, NetworkSpec

SHAPE = (3, 4, 5)
SPEC = NetworkSpec("net", SHAPE, 4)
PLAIN = Augmentation(pad_pixels=0, flip=False)


def values(count, shape=SHAPE, dtype=np.float32, seed=0):
    return (100 * np.random.default_rng(seed).normal(size=(count, *shape))).astype(dtype)


@pytest.fixture
def store(tmp_path):
    def made(train, validation=None, say=lambda line: None, **settings):
        files = {"train": train, "validation": validation}
        files = {key: str(tmp_path / name) for key, name in files.items() if name}
        entry = DatasetSettings(kind="arrays", **files, **settings)
        store_arrays(tmp_path / "made", "mine", entry, say)
        return tmp_path / "made"

    return made


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (16,), (2, 7)])
def test_batches_hold_the_arrays_as_they_are(tmp_path, store, dtype, shape):
    expected = values(40, shape, np.int16).astype(dtype)
    np.save(tmp_path / "x.npy", expected)
    data, spec = open_dataset(store("x.npy")), NetworkSpec("net", shape, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    require_images_match(data, spec)
    splits = (data.train, data.validation, data.test)
    batches = [EvaluationBatches(split, spec)[0][0] for split in splits]
    assert all(batch.dtype == getattr(torch, dtype) for batch in batches)
    stored = torch.cat(batches).numpy()
    order = np.lexsort(stored.reshape(40, -1).T), np.lexsort(expected.reshape(40, -1).T)
    np.testing.assert_array_equal(stored[order[0]], expected[order[1]])
    assert all("x.npy has no labels" in split.unlabelled for split in splits)


def test_a_file_for_tests(tmp_path, store):
    np.save(tmp_path / "x.npy", values(20))
    np.save(tmp_path / "y.npy", expected := values(6, seed=1))
    data = open_dataset(store("x.npy", "y.npy"))
    assert (len(data.train), len(data.validation)) == (18, 2)
    np.testing.assert_array_equal(EvaluationBatches(data.test, SPEC)[0][0].numpy(), expected)


def test_labels(tmp_path, store):
    labels = np.arange(40) % 4
    np.savez(tmp_path / "x.npz", x=values(40), labels=labels.astype(np.uint8))
    np.savez(tmp_path / "y.npz", x=values(6, seed=1), labels=[3, 2, 1, 0, 0, 0])
    data = open_dataset(store("x.npz", "y.npz"))
    assert data.classes == ("0", "1", "2", "3")
    assert EvaluationBatches(data.test, SPEC)[0][1].tolist() == [3, 2, 1, 0, 0, 0]
    assert not data.train.unlabelled
    held_out = open_dataset(store("x.npz"))
    assert list(np.bincount(held_out.test.labels)) == [2, 2, 2, 2]
    rows = [np.flatnonzero((values(40) == value).all((1, 2, 3)))[0]
            for value in held_out.test.images.values]  # fmt: skip
    assert held_out.test.labels.tolist() == labels[rows].tolist()


def test_labels_in_one_of_two_files(tmp_path, store):
    np.savez(tmp_path / "x.npz", x=values(20), labels=np.arange(20) % 4)
    np.save(tmp_path / "y.npy", values(6, seed=1))
    data = open_dataset(store("x.npz", "y.npy"))
    assert data.classes == ("0", "1", "2", "3")
    assert not data.train.unlabelled
    with pytest.raises(UserError, match=r"accuracy needs labels, .*y\.npy has no labels"):
        data.test.require_labels("measuring accuracy")


def test_batches_for_training(tmp_path, store):
    np.savez(tmp_path / "x.npz", x=values(40), labels=np.arange(40) % 4)
    train = open_dataset(store("x.npz")).train
    batches = AugmentedBatches(train, SPEC, batch_size=4, augment=PLAIN, seed=3)
    assert batches.batches_per_epoch == len(train) // 4
    for step in (0, 5, 20):
        inputs, labels = batches[step]
        rows = train.rows[batches.rows(step)]
        np.testing.assert_array_equal(inputs.numpy(), train.images.values[rows])
        assert labels.tolist() == train.labels[rows].tolist()
        assert not batches.flipped(step).any()
    orders = [np.concatenate([batches.rows(6 * epoch + n) for n in range(6)]) for epoch in (0, 1)]
    assert len(set(orders[0])) == 24
    assert list(orders[0]) != list(orders[1])


@pytest.mark.parametrize("augment", [{}, {"pad_pixels": 0}, {"flip": False}])
def test_augmentation_is_refused(tmp_path, store, augment):
    np.save(tmp_path / "x.npy", values(40))
    train = open_dataset(store("x.npy")).train
    batches = AugmentedBatches(train, SPEC, batch_size=4, augment=Augmentation(**augment), seed=3)
    with pytest.raises(UserError, match=r"`augment`: .* Set `augment` to `\{pad_pixels: 0, flip:"):
        batches[0]


def test_the_same_arrays_give_the_same_bytes(tmp_path, store):
    np.save(tmp_path / "x.npy", values(40))
    first = {path.name: path.read_bytes() for path in store("x.npy").iterdir()}
    assert {path.name: path.read_bytes() for path in store("x.npy").iterdir()} == first
    index = json.loads(first["dataset.json"])
    assert index["form"] == "inputs"
    np.save(tmp_path / "x.npy", values(40) + 1)
    changed = json.loads((store("x.npy") / "dataset.json").read_text())
    assert changed["splits"]["train"]["sha256"] != index["splits"]["train"]["sha256"]


def test_big_endian_and_transposed_arrays(tmp_path, store):
    expected = values(20)
    np.save(tmp_path / "x.npy", np.asfortranarray(expected).astype(">f4"))
    np.save(tmp_path / "y.npy", expected)
    test = open_dataset(store("y.npy", "x.npy")).test
    np.testing.assert_array_equal(EvaluationBatches(test, SPEC)[0][0].numpy(), expected)


def test_arrays_of_another_shape_than_the_input(tmp_path, store):
    np.save(tmp_path / "x.npy", values(20, (3, 4, 6)))
    data = open_dataset(store("x.npy"))
    with pytest.raises(UserError, match=r"mine: .* shape \(3, 4, 6\), .* net needs \(3, 4, 5\)"):
        require_images_match(data, SPEC)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (values(20, ()), r"the shape \(20,\); expected \(samples, \.\.\.\)"),
        (values(20, dtype=np.float64), r"the type float64; expected .*astype\('float32'\)"),
        (np.ones((20, 3), np.uint32), r"the type uint32; expected"),
        (np.array([[None] * 3] * 20), "cannot be read as arrays .*Python objects"),
        (np.float32(3), "at least one sample"),
        (values(0), "at least one sample"),
        (values(2), "has 2 images, but at least 3 are needed"),
        (values(9, (3, 0)), "without empty axes"),
    ],
)
def test_unusable_arrays(tmp_path, store, array, reason):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=rf"dataset\.mine.*x\.npy.*{reason}"):
        store("x.npy")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, store, value):
    array = values(40)
    array[17, 1, 2, 3] = value
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(
        UserError, match=r"mine: .*x\.npy: sample 17 \(from 0\) has values that are"
    ):
        store("x.npy")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": values(20), "labels": np.zeros(19, int)}, r"\{'x': 20, 'labels': 19\} samples"),
        ({"x": values(20), "labels": np.zeros(20)}, "`labels` .* type float64; expected one class"),
        ({"x": values(20), "labels": np.zeros((20, 1), int)}, r"`labels` has the shape \(20, 1\)"),
        ({"x": values(20), "labels": np.full(20, -1)}, "`labels` .*from 0"),
        ({"x": values(20), "labels": np.full(20, 10**9)}, "the class 1000000000; expected"),
        ({"labels": np.zeros(20, int)}, r"has no arrays of inputs; expected one, or one for each"),
        ({"x": values(9), "y": values(8)}, r"arrays of \{'x': 9, 'y': 8\} samples"),
        ({"x": values(9), "y": values(9, dtype=np.float64)}, "array 'y' has the type float64"),
    ],
)
def test_unusable_files_of_several_arrays(tmp_path, store, arrays, reason):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=rf"dataset\.mine\.train: .*x\.npz .*{reason}|{reason}"):
        store("x.npz")


def test_files_that_do_not_fit_each_other(tmp_path, store):
    np.save(tmp_path / "x.npy", values(20))
    for name, array, found in (
        ("y.npy", values(9, (3, 4, 4)), r"\(3, 4, 4\) and float32"),
        ("z.npy", values(9, dtype=np.int64), r"\(3, 4, 5\) and int64"),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(UserError, match=rf"mine: .*shape \(3, 4, 5\) .*float32.* {found}"):
            store("x.npy", name)


@pytest.mark.parametrize("content", [None, b"", b"no array", b"PK\x03\x04 broken"])
def test_files_without_arrays(tmp_path, store, content):
    for name in ("x.npy", "x.npz"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"mine\.train: .*{name} cannot be read as arrays"):
            store(name)


def test_folders_of_images_do_not_fit_a_dataset_of_arrays(tmp_path, store):
    np.save(tmp_path / "x.npy", values(20))
    made, decoding = store("x.npy"), DatasetSettings()
    for validation, calibration in (({"folder": "own"}, None), ({}, "own")):
        settings = ValidationSettings.model_validate(validation)
        with pytest.raises(UserError, match=r"checkpoint\.net: the dataset mine has arrays"):
            write_splits(tmp_path / "splits", made, settings, decoding, calibration=calibration,
                         place="checkpoint.net", say=print)  # fmt: skip
    settings = ValidationSettings.model_validate({"from": "test", "images": 2})
    write_splits(tmp_path / "splits", made, settings, decoding, place="checkpoint.net", say=print)
    data = open_dataset(made, tmp_path / "splits")
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)


WORDS = NetworkSpec.of_forms(
    "reader", (InputForm("words", (6,), "int64"), InputForm("length", (), "int64"))
)


def words(count=20):
    return {"words": np.arange(count * 6).reshape(count, 6), "length": np.arange(count)}


def test_several_inputs(tmp_path, store):
    labels = np.arange(20) % 4
    np.savez(tmp_path / "x.npz", **words(), labels=labels)
    # The order of the arrays in a file does not matter.
    np.savez(tmp_path / "y.npz", **dict(reversed(words(6).items())))
    data = open_dataset(store("x.npz", "y.npz"))
    require_images_match(data, WORDS)
    inputs, _ = EvaluationBatches(data.test, WORDS)[0]
    assert {name: tensor.dtype for name, tensor in inputs.items()} == {
        "words": torch.int64,
        "length": torch.int64,
    }
    for name, array in words(6).items():
        np.testing.assert_array_equal(inputs[name], array)
    batches = AugmentedBatches(data.train, WORDS, batch_size=4, augment=PLAIN, seed=3)
    inputs, batch_labels = batches[2]
    # Rows of all inputs and of the labels belong together.
    np.testing.assert_array_equal(inputs["words"][:, 0], 6 * inputs["length"])
    np.testing.assert_array_equal(batch_labels, inputs["length"] % 4)
    first = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    store("x.npz", "y.npz")
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"words": words()["words"]}, "lacks the input 'length': it has a single array, but"),
        ({**words(), "mask": np.ones(20, bool)}, "has an input too many, 'mask'"),
        ({"wrods": words()["words"], "length": words()["length"]}, "lacks the input 'words': it"),
        ({**words(), "words": np.ones((20, 7), int)}, r"'words' has the shape \(7,\), .* \(6,\)"),
        ({**words(), "length": np.ones(20, np.int32)}, r"'length' has the type int32, .*int64"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs(tmp_path, store, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=rf"dataset\.mine: .*{message}"):
        require_images_match(open_dataset(store("x.npz")), WORDS)


def test_a_dataset_of_another_kind_than_the_network(tmp_path, store):
    np.savez(tmp_path / "x.npz", **words())
    arrays = open_dataset(store("x.npz"))
    with pytest.raises(UserError, match=r"dataset\.mine: has several inputs, 'words', 'length'"):
        require_images_match(arrays, SPEC)
    write_tiny_dataset(tmp_path / "images", train=20, test=20)
    images = open_dataset(tmp_path / "images")
    with pytest.raises(UserError, match=r"tiny: has images, but the network reader takes 'words'"):
        require_images_match(images, WORDS)


def test_files_with_other_inputs(tmp_path, store):
    np.savez(tmp_path / "x.npz", **words())
    np.savez(tmp_path / "y.npz", words=words(6)["words"], mask=np.ones((6, 6), bool))
    with pytest.raises(UserError, match=r"x\.npz has the inputs 'words', 'length', but .*'mask'"):
        store("x.npz", "y.npz")
