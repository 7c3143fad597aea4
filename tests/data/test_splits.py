import json

import numpy as np
import pytest
from photos import COLOURS, write_photos
from tiny import write_tiny_dataset

from lowrank.config.checkpoint import ValidationSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.data.datasets import open_dataset
from lowrank.data.folders import store_folders
from lowrank.data.splits import divide, explained_gap, gap_warning, write_splits
from lowrank.errors import UserError

SOME = "checkpoint.some.validation"


@pytest.fixture
def folder(tmp_path):
    write_tiny_dataset(tmp_path / "tiny", train=200, test=60)
    return tmp_path / "tiny"


def settings(document):
    return ValidationSettings.model_validate(document)


def split(folder, document, decoding=None, lines=None):
    output = folder.parent / "splits"
    lines = [] if lines is None else lines
    decoding = decoding or DatasetSettings(kind="cifar10")
    write_splits(output, folder, settings(document), decoding, place=SOME, say=lines.append)
    return output


def test_default_holds_images_out_of_the_training_split_as_without_a_choice(folder):
    chosen, plain = open_dataset(folder, split(folder, {})), open_dataset(folder)
    assert chosen.validation_from == "train"
    for name in ("train", "validation", "test"):
        one, other = getattr(chosen, name), getattr(plain, name)
        np.testing.assert_array_equal(one.rows, other.rows)
    assert (len(plain.train), len(plain.validation), len(plain.test)) == (180, 20, 60)


def test_from_the_test_images_none_is_both_chosen_on_and_reported(folder):
    data = open_dataset(folder, split(folder, {"from": "test", "images": 25}))
    assert data.validation_from == "test"
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 25, 35)
    assert data.validation.images is data.test.images
    assert sorted([*data.validation.rows, *data.test.rows]) == list(range(60))
    assert list(data.train.rows) == list(range(200))


def test_half_of_the_test_images_by_default(folder):
    data = open_dataset(folder, split(folder, {"from": "test"}))
    assert (len(data.validation), len(data.test)) == (30, 30)


def test_more_or_fewer_of_the_training_images(folder):
    data = open_dataset(folder, split(folder, {"images": 50}))
    assert (len(data.train), len(data.validation), len(data.test)) == (150, 50, 60)


def test_drawn_in_the_proportions_of_the_classes():
    labels = np.repeat([0, 1, 2, 3], [400, 300, 200, 101])
    rows = divide(10, labels, settings({"from": "test", "images": 500}))
    # 500 x 400 / 1001 = 199.8, 149.9, 99.9 and 50.4: the largest remainders round up.
    assert list(np.bincount(labels[rows.validation])) == [200, 150, 100, 50]
    again = divide(10, labels, settings({"from": "test", "images": 500}))
    np.testing.assert_array_equal(rows.validation, again.validation)


def test_within_a_class_it_is_not_the_first_images_that_are_drawn():
    labels = np.repeat([0, 1], 500)
    rows = divide(10, labels, settings({"from": "test", "images": 500})).validation
    assert 200 < np.median(rows[rows < 500]) < 300


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"from": "test", "images": 60}, "60 images .* the test split, which has 60.* most 59"),
        ({"images": 200}, "200 images .* the train split, which has 200; none would be left"),
    ],
)
def test_something_must_be_left(folder, document, reason):
    with pytest.raises(UserError, match=rf"checkpoint\.some\.validation\.images: {reason}"):
        split(folder, document)
    assert not (folder.parent / "splits").exists()


def test_splits_of_another_state_of_the_dataset_are_refused(folder):
    splits = split(folder, {"from": "test", "images": 25})
    write_tiny_dataset(folder, train=100, test=60)
    with pytest.raises(UserError, match=r"has changed since\. Delete"):
        open_dataset(folder, splits)


def test_the_same_choice_gives_the_same_bytes(folder):
    first = (split(folder, {"from": "test", "images": 25}) / "splits.json").read_bytes()
    assert (split(folder, {"from": "test", "images": 25}) / "splits.json").read_bytes() == first
    assert (split(folder, {"from": "test", "images": 26}) / "splits.json").read_bytes() != first
    counts = {name: each["images"] for name, each in json.loads(first)["splits"].items()}
    assert counts == {"train": 200, "validation": 25, "test": 35}


@pytest.fixture
def photos(tmp_path):
    """A stored dataset of photos; `own` holds three images of each class beside it."""
    write_photos(tmp_path / "train", dict.fromkeys(COLOURS, 10))
    write_photos(tmp_path / "val", dict.fromkeys(COLOURS, 4), seed=1)
    write_photos(tmp_path / "own", dict.fromkeys(COLOURS, 3), seed=2)
    store_folders(tmp_path / "made", "photos", decoding(tmp_path), lambda line: None)
    return tmp_path / "made"


def decoding(root, **changes):
    folders = {"train": str(root / "train"), "validation": str(root / "val")}
    return DatasetSettings(kind="imagefolder", store_pixels=40, **folders, **changes)


@pytest.mark.parametrize("cache_gib", [0, 8])
def test_a_folder_of_ones_own(photos, cache_gib):
    root, lines = photos.parent, []
    own = {"folder": str(root / "own")}
    splits = split(photos, own, decoding(root, cache_gib=cache_gib), lines)
    data = open_dataset(photos, splits)
    assert data.validation_from == "folder"
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 9, 12)
    assert list(data.validation.labels) == [0] * 3 + [1] * 3 + [2] * 3
    assert all(min(data.validation.images[n].shape[:2]) <= 40 for n in range(9))
    assert "9 image files" in lines[0]


def test_a_changed_folder_gives_another_index(photos):
    root = photos.parent
    own = {"folder": str(root / "own")}
    first = (split(photos, own, decoding(root)) / "splits.json").read_bytes()
    write_photos(root / "own", dict.fromkeys(COLOURS, 3), seed=3)
    assert (split(photos, own, decoding(root)) / "splits.json").read_bytes() != first


def test_labels_of_a_folder_go_by_the_names_of_the_classes(tmp_path):
    # The dataset's classes are not in alphabetical order.
    write_tiny_dataset(tmp_path / "tiny", train=20, test=10)
    index = json.loads((tmp_path / "tiny/dataset.json").read_text())
    index["classes"] = ["red", "green", "blue"]
    (tmp_path / "tiny/dataset.json").write_text(json.dumps(index))
    write_photos(tmp_path / "own", {"blue": 1, "green": 2, "red": 3})
    data = open_dataset(
        tmp_path / "tiny", split(tmp_path / "tiny", {"folder": str(tmp_path / "own")})
    )
    assert list(np.bincount(data.validation.labels)) == [3, 2, 1]


def test_a_folder_of_other_classes_is_refused(photos):
    root = photos.parent
    (root / "own/red").rename(root / "own/rot")
    with pytest.raises(UserError, match=r"validation\.folder: .*own has rot; only the dataset has"):
        split(photos, {"folder": str(root / "own")}, decoding(root))


def test_images_without_labels_are_not_held_out_for_choices(photos):
    root = photos.parent
    (root / "train/red").rename(root / "train/rot")
    store_folders(photos, "photos", decoding(root), lambda line: None)
    with pytest.raises(
        UserError, match=r"no labels: .*only .*train has rot.* \{from: test, images"
    ):
        split(photos, {}, decoding(root))
    data = open_dataset(photos, split(photos, {"from": "test"}))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 6)
    assert data.train.unlabelled
    assert not data.validation.unlabelled


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"folder": "here", "from": "test"}, "`folder` cannot be combined with other"),
        ({"folder": "here", "images": 3}, "`folder` cannot be combined with other"),
        ({"from": "val"}, "'train' or 'test'"),
        ({"images": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing(document, reason):
    with pytest.raises(ValueError, match=reason):
        settings(document)


def test_a_gap_that_chance_explains_is_no_warning():
    # The shipped checkpoints.
    for accuracy in ({"validation": 93.66, "test": 93.38}, {"validation": 91.9, "test": 91.66}):
        counts = {"validation": 5000, "test": 10000}
        assert gap_warning(accuracy, **counts, validation_from="train") == ""


def test_a_gap_beyond_chance_is_a_warning_that_says_what_to_do():
    accuracy = {"validation": 99.98, "test": 93.39}
    counts = {"validation": 5000, "test": 10000}
    warning = gap_warning(accuracy, **counts, validation_from="train")
    assert "6.59 points apart" in warning
    assert "`validation: {from: test, images: 5000}`" in warning


def test_validation_accuracy_below_that_of_the_test_images_is_no_warning():
    accuracy = {"validation": 80.0, "test": 93.0}
    assert gap_warning(accuracy, validation=5000, test=10000, validation_from="train") == ""


def test_what_chance_explains_is_three_standard_errors_and_half_a_point():
    # sqrt(90 x 10 x (1/100 + 1/100)) = 4.243 points
    accuracy = {"validation": 92.0, "test": 88.0}
    assert explained_gap(accuracy, validation=100, test=100) == pytest.approx(13.228, abs=1e-3)


def test_the_threshold_is_rarely_passed_by_chance():
    random = np.random.default_rng(0)
    drawn = 100 * random.binomial((500, 1000), 0.9, (20_000, 2)) / (500, 1000)
    warned = [
        gap_warning(
            {"validation": v, "test": t}, validation=500, test=1000, validation_from="train"
        )
        for v, t in drawn
    ]
    assert 0 < sum(map(bool, warned)) < 0.00135 * len(warned)
