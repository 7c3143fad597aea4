import json

import numpy as np
import pytest
from photos import COLOURS, write_flat_photos, write_photos
from tiny import write_tiny_dataset

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.data.datasets import open_dataset
from lowrank.data.folders import NO_LABEL, store_folders
from lowrank.data.splits import divide, write_splits
from lowrank.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_tiny_dataset(tmp_path / "tiny", train=200, test=60)
    return tmp_path / "tiny"


def settings(document):
    return ValidationSettings.model_validate(document)


def split(folder, document, decoding=None, lines=None, calibration=None):
    output = folder.parent / "splits"
    lines = [] if lines is None else lines
    decoding = decoding or DatasetSettings(kind="cifar10")
    write_splits(
        output,
        folder,
        settings(document),
        decoding,
        calibration=calibration and str(calibration),
        place="checkpoint.some",
        say=lines.append,
    )
    return output


def test_default_splits_equal_those_without_a_splits_folder(folder):
    with_splits, default = open_dataset(folder, split(folder, {})), open_dataset(folder)
    assert with_splits.validation_from == "train"
    for name in ("train", "validation", "test"):
        expected = getattr(default, name)
        np.testing.assert_array_equal(getattr(with_splits, name).rows, expected.rows)
    assert (len(default.train), len(default.validation), len(default.test)) == (180, 20, 60)


def test_validation_and_test_images_do_not_overlap(folder):
    data = open_dataset(folder, split(folder, {"from": "test", "images": 25}))
    assert data.validation_from == "test"
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 25, 35)
    assert data.validation.images is data.test.images
    assert sorted([*data.validation.rows, *data.test.rows]) == list(range(60))
    assert list(data.train.rows) == list(range(200))


def test_default_is_half_of_the_test_images(folder):
    data = open_dataset(folder, split(folder, {"from": "test"}))
    assert (len(data.validation), len(data.test)) == (30, 30)


def test_number_of_validation_images_from_the_training_images(folder):
    data = open_dataset(folder, split(folder, {"images": 50}))
    assert (len(data.train), len(data.validation), len(data.test)) == (150, 50, 60)


def test_images_are_drawn_in_the_class_proportions():
    labels = np.repeat([0, 1, 2, 3], [400, 300, 200, 101])
    rows = divide(10, labels, settings({"from": "test", "images": 500}))
    # 500 x 400 / 1001 = 199.8; then 149.9, 99.9 and 50.4. The largest remainders are rounded up.
    assert list(np.bincount(labels[rows.validation])) == [200, 150, 100, 50]
    second = divide(10, labels, settings({"from": "test", "images": 500}))
    np.testing.assert_array_equal(rows.validation, second.validation)


def test_images_of_a_class_are_drawn_at_random():
    labels = np.repeat([0, 1], 500)
    rows = divide(10, labels, settings({"from": "test", "images": 500})).validation
    assert 200 < np.median(rows[rows < 500]) < 300


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"from": "test", "images": 60}, "60 images .* the test split, which has 60.* most 59"),
        ({"images": 200}, "200 images .* the train split, which has 200: none would be left"),
    ],
)
def test_every_split_needs_images(folder, document, reason):
    with pytest.raises(
        UserError, match=rf"checkpoint\.some\.validation\.images: cannot hold out {reason}"
    ):
        split(folder, document)
    assert not (folder.parent / "splits").exists()


def test_splits_of_a_changed_dataset_are_rejected(folder):
    splits = split(folder, {"from": "test", "images": 25})
    write_tiny_dataset(folder, train=100, test=60)
    with pytest.raises(UserError, match=r"has changed since\. Delete"):
        open_dataset(folder, splits)


def test_same_settings_give_the_same_bytes(folder):
    first = (split(folder, {"from": "test", "images": 25}) / "splits.json").read_bytes()
    assert (split(folder, {"from": "test", "images": 25}) / "splits.json").read_bytes() == first
    assert (split(folder, {"from": "test", "images": 26}) / "splits.json").read_bytes() != first
    splits = json.loads(first)["splits"]
    counts = {name: entry["images"] for name, entry in splits.items()}
    assert counts == {"train": 200, "validation": 25, "test": 35}


@pytest.fixture
def photos(tmp_path):
    """Store a dataset of photos, and write the folder `own` with three images per class."""
    write_photos(tmp_path / "train", dict.fromkeys(COLOURS, 10))
    write_photos(tmp_path / "val", dict.fromkeys(COLOURS, 4), seed=1)
    write_photos(tmp_path / "own", dict.fromkeys(COLOURS, 3), seed=2)
    store_folders(tmp_path / "made", "photos", decoding(tmp_path), lambda line: None)
    return tmp_path / "made"


def decoding(root, **changes):
    folders = {"train": str(root / "train"), "validation": str(root / "val")}
    return DatasetSettings(kind="imagefolder", store_pixels=40, **folders, **changes)


@pytest.mark.parametrize("cache_gib", [0, 8])
def test_user_folder(photos, cache_gib):
    root, lines = photos.parent, []
    own = {"folder": str(root / "own")}
    splits = split(photos, own, decoding(root, cache_gib=cache_gib), lines)
    data = open_dataset(photos, splits)
    assert data.validation_from == "folder"
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 9, 12)
    assert list(data.validation.labels) == [0] * 3 + [1] * 3 + [2] * 3
    assert all(min(data.validation.images[n].shape[:2]) <= 40 for n in range(9))
    assert "9 image files" in lines[0]


def test_changed_folder_gives_another_index(photos):
    root = photos.parent
    own = {"folder": str(root / "own")}
    first = (split(photos, own, decoding(root)) / "splits.json").read_bytes()
    write_photos(root / "own", dict.fromkeys(COLOURS, 3), seed=3)
    assert (split(photos, own, decoding(root)) / "splits.json").read_bytes() != first


def test_labels_of_a_folder_follow_the_class_names(tmp_path):
    # The classes of the dataset are not in alphabetical order.
    write_tiny_dataset(tmp_path / "tiny", train=20, test=10)
    index = json.loads((tmp_path / "tiny/dataset.json").read_text())
    index["classes"] = ["red", "green", "blue"]
    (tmp_path / "tiny/dataset.json").write_text(json.dumps(index))
    write_photos(tmp_path / "own", {"blue": 1, "green": 2, "red": 3})
    data = open_dataset(
        tmp_path / "tiny", split(tmp_path / "tiny", {"folder": str(tmp_path / "own")})
    )
    assert list(np.bincount(data.validation.labels)) == [3, 2, 1]


def test_user_folder_without_classes_has_no_labels(photos):
    root = photos.parent
    flat = write_flat_photos(root / "flat", 5)
    data = open_dataset(photos, split(photos, {"folder": str(flat)}, decoding(root)))
    assert (data.validation_from, len(data.validation)) == ("folder", 5)
    assert "flat has no sub-folders for its classes" in data.validation.unlabelled
    assert not data.train.unlabelled
    assert not data.test.unlabelled


def test_user_folder_for_a_dataset_without_classes_has_no_labels(photos):
    root = photos.parent
    flat = {"kind": "imagefolder", "train": str(write_flat_photos(root / "flat", 9))}
    settings_of_flat = DatasetSettings.model_validate(flat)
    store_folders(photos, "photos", settings_of_flat, lambda line: None)
    data = open_dataset(photos, split(photos, {"folder": str(root / "own")}, settings_of_flat))
    assert (len(data.validation), data.validation.unlabelled) == (9, "the dataset has no classes")


def test_validation_images_of_a_dataset_without_labels(photos):
    flat = write_flat_photos(photos.parent / "flat", 40)
    settings_of_flat = DatasetSettings(kind="imagefolder", train=str(flat))
    store_folders(photos, "photos", settings_of_flat, lambda line: None)
    data = open_dataset(photos, split(photos, {}))
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    data = open_dataset(photos, split(photos, {"from": "test", "images": 3}))
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 3, 5)
    assert data.validation.unlabelled == data.test.unlabelled
    assert "flat has no sub-folders" in data.test.unlabelled


def test_folder_with_other_classes_is_rejected(photos):
    root = photos.parent
    (root / "own/red").rename(root / "own/rot")
    with pytest.raises(UserError, match=r"validation\.folder: .*own has rot; only the dataset has"):
        split(photos, {"folder": str(root / "own")}, decoding(root))


def test_validation_images_without_labels(photos):
    root = photos.parent
    (root / "train/red").rename(root / "train/rot")
    store_folders(photos, "photos", decoding(root), lambda line: None)
    data = open_dataset(photos, split(photos, {}, decoding(root)))
    reason = (
        r"have none: .*only .*train has rot.*`checkpoint.<model>.validation` .*\{from: test, im"
    )
    with pytest.raises(UserError, match=f"measuring accuracy needs labels, .*{reason}"):
        data.validation.require_labels("measuring accuracy")
    data = open_dataset(photos, split(photos, {"from": "test"}))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 6)
    assert data.train.unlabelled
    assert not data.validation.unlabelled


@pytest.mark.parametrize("cache_gib", [0, 8])
def test_calibration_images_of_the_user(photos, cache_gib):
    root, lines = photos.parent, []
    flat, settings_of_images = (
        write_flat_photos(root / "flat", 7),
        decoding(root, cache_gib=cache_gib),
    )
    own = {"folder": str(root / "own")}
    data = open_dataset(photos, split(photos, own, settings_of_images, lines, flat))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 9, 12]
    assert len(data.calibration) == 7
    reds = [data.calibration.images[n].mean((0, 1)) for n in data.calibration.rows]
    assert all(red > green and red > blue for red, green, blue in reds)
    assert all(min(data.calibration.images[n].shape[:2]) <= 40 for n in range(7))
    assert not [line for line in lines if "warning" in line]
    # Labels of calibration images are not used, so their sub-folders can have any names.
    data = open_dataset(photos, split(photos, {}, settings_of_images, calibration=root / "own"))
    assert (len(data.calibration), set(data.calibration.labels)) == (9, {NO_LABEL})
    assert len(data.validation) == 3


def test_calibration_images_are_training_images_by_default(photos):
    data = open_dataset(photos, split(photos, {}))
    assert data.calibration is data.train


def test_folders_of_calibration_images_with_too_few_images(photos):
    root, lines = photos.parent, []
    (root / "empty").mkdir()
    for name, reason in (("empty", "neither sub-folders nor"), ("nothing", "is not a folder")):
        with pytest.raises(UserError, match=rf"checkpoint\.some\.calibration: .*{name} .*{reason}"):
            split(photos, {}, decoding(root), calibration=root / name)
    one = write_flat_photos(root / "one", 1)
    data = open_dataset(photos, split(photos, {}, decoding(root), lines, one))
    assert len(data.calibration) == 1
    [warning] = [line for line in lines if "warning" in line]
    assert f"checkpoint.some.calibration: {one} has a single image" in warning


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"folder": "here", "from": "test"}, "`folder` cannot be combined with other"),
        ({"folder": "here", "images": 3}, "`folder` cannot be combined with other"),
        ({"from": "val"}, "'train' or 'test'"),
        ({"images": 0}, "greater than or equal to 1"),
    ],
)
def test_invalid_settings(document, reason):
    with pytest.raises(ValueError, match=reason):
        settings(document)
