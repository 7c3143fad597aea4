import errno
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from photos import COLOURS, photo, write_flat_photos, write_photos
from PIL import Image
from torchvision.datasets import ImageFolder

from lowrank.config.dataset import DatasetSettings
from lowrank.data.datasets import open_dataset
from lowrank.data.folder_scan import scan
from lowrank.data.folders import NO_LABEL, store_folders
from lowrank.data.images import ImageFiles, StoredImages
from lowrank.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Write two folders with ten training images and four validation images per class."""
    write_photos(tmp_path / "train", dict.fromkeys(COLOURS, 10))
    write_photos(tmp_path / "val", dict.fromkeys(COLOURS, 4), seed=1)
    return tmp_path


@pytest.fixture
def lines():
    return []


def settings_of(photos, **changes):
    folders = {"train": str(photos / "train"), "validation": str(photos / "val")}
    return DatasetSettings(kind="imagefolder", **{"store_pixels": 40, **folders, **changes})


def store(photos, name="made", say=lambda line: None, **changes):
    store_folders(photos / name, "photos", settings_of(photos, **changes), say)
    return photos / name


def content_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_classes_and_images_match_torchvision(photos):
    (photos / "train/red/deep/er").mkdir(parents=True)
    Image.fromarray(photo(9, 9)).save(photos / "train/red/deep/er/one.JPG", "JPEG")
    (photos / "train/red/notes.txt").write_text("no image")
    expected = ImageFolder(photos / "train")
    listed = scan(photos / "train", "here")
    assert list(listed.classes) == expected.classes
    assert [str(photos / "train" / name) for name in listed.files] == [
        path for path, _ in expected.samples
    ]
    assert list(listed.labels) == expected.targets


def test_hidden_files_and_folders_are_skipped(photos):
    expected = scan(photos / "train", "here")
    (photos / "train/.checkpoints").mkdir()
    (photos / "train/red/._000.png").write_bytes(b"left over by a desktop")
    assert scan(photos / "train", "here") == expected


def test_stored_folders_can_be_opened_as_a_dataset(photos):
    data = open_dataset(store(photos))
    assert (data.name, data.classes) == ("photos", ("blue", "green", "red"))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 12)
    assert sorted([*data.train.rows, *data.validation.rows]) == list(range(30))
    assert isinstance(data.train.images, StoredImages)
    assert isinstance(data.train.images.pixels, np.memmap)
    for split, root, count in ((data.train, "train", 30), (data.test, "val", 12)):
        expected = ImageFolder(photos / root)
        assert len(split.images) == count
        for number, (picture, label) in enumerate(expected):
            image = split.images[number]
            assert min(image.shape[:2]) == min(40, *picture.size)
            if min(picture.size) <= 40:
                np.testing.assert_array_equal(image, np.asarray(picture))
            assert split.labels[number] == label


def test_files_are_read_if_decoded_images_do_not_fit(photos, lines):
    stored = open_dataset(store(photos))
    files = open_dataset(store(photos, "files", lines.append, cache_gib=0))
    assert "30 and 12 image files" in lines[0]
    assert "more than `cache_gib` 0" in lines[0]
    assert isinstance(files.test.images, ImageFiles)
    assert files.reduced_to == stored.reduced_to == 40
    for split, expected in ((files.train, stored.train), (files.test, stored.test)):
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.rows, expected.rows)
        for number in range(len(split.images)):
            np.testing.assert_array_equal(split.images[number], expected.images[number])
    assert sum(path.stat().st_size for path in (photos / "files").iterdir()) < 10_000


def test_size_of_decoded_images_is_known_before_storing(photos):
    pixels = [np.load(path).size for path in store(photos).glob("*_pixels.npy")]
    assert len(pixels) == 2
    store(photos, cache_gib=sum(pixels) / 2**30)
    assert (photos / "made/train_pixels.npy").exists()
    store(photos, cache_gib=(sum(pixels) - 1) / 2**30)
    assert not (photos / "made/train_pixels.npy").exists()


def test_stored_bytes_do_not_depend_on_the_number_of_threads(photos):
    assert content_of(store(photos, threads=1)) == content_of(store(photos, "other", threads=3))
    files = [f"{part}_{array}.npy" for part in ("test", "train")
             for array in ("labels", "pixels", "sizes")]  # fmt: skip
    assert list(content_of(photos / "made")) == ["dataset.json", *files]


def test_index_contains_a_digest_of_the_files(photos):
    index = json.loads((store(photos) / "dataset.json").read_text())
    listing = "".join(
        f"{hashlib.sha256((photos / 'val' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in scan(photos / "val", "here").files
    )
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert index["splits"]["test"]["sha256"]["images"] == digest
    assert "folders" not in index
    Image.fromarray(photo(31, 32)).save(photos / "val/red/000.png")
    changed = json.loads((store(photos) / "dataset.json").read_text())
    assert changed["splits"]["test"]["sha256"]["images"] != digest
    assert changed["splits"]["train"] == index["splits"]["train"]


def test_reduced_to_is_none_if_no_image_was_reduced(photos):
    assert open_dataset(store(photos)).reduced_to == 40
    assert open_dataset(store(photos, store_pixels=60)).reduced_to is None


def test_missing_folder_is_named(photos):
    (photos / "val").rename(photos / "elsewhere")
    with pytest.raises(UserError, match=r"dataset\.photos\.validation: .*val is not a folder"):
        store(photos)


def without_classes(folder):
    """Move the images of a folder out of their sub-folders."""
    for number, path in enumerate(sorted(folder.glob("*/*"))):
        path.rename(folder / f"{number:03}.png")
    for path in list(folder.iterdir()):
        if path.is_dir():
            path.rmdir()


def test_validation_images_without_classes_have_no_labels(photos, lines):
    without_classes(photos / "val")
    data = open_dataset(store(photos, say=lines.append))
    assert data.classes == ("blue", "green", "red")
    assert set(data.test.labels) == {NO_LABEL}
    assert list(np.bincount(data.train.labels)) == [10, 10, 10]
    assert not data.train.unlabelled
    assert re.search("warning: dataset.photos.validation: images are used without labels", lines[0])
    with pytest.raises(UserError, match=r"accuracy needs labels, .*val has no sub-folders for its"):
        data.test.require_labels("measuring accuracy")


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_folder_without_classes_is_a_dataset(tmp_path, lines, cache_gib):
    write_flat_photos(tmp_path / "train", 40)
    data = open_dataset(store(tmp_path, say=lines.append, validation=None, cache_gib=cache_gib))
    assert data.classes == ()
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    for part in (data.train, data.validation, data.test):
        assert "train has no sub-folders for its classes" in part.unlabelled
        assert set(part.labels) == {NO_LABEL}
    assert "without `validation`, 8 of 40 images in" in lines[0]
    assert "held out as test images" in lines[0]
    assert len([line for line in lines if "used without labels" in line]) == 1
    assert not [line for line in lines if "warning" in line]
    files = sorted((tmp_path / "train").iterdir())
    stored = [split.images[n].mean() for split in (data.train, data.test)
              for n in range(len(split.images))]  # fmt: skip
    originals = [np.asarray(Image.open(path)).mean() for path in files]
    assert sorted(stored) == pytest.approx(sorted(originals), abs=2)


def test_two_folders_without_classes(tmp_path, lines):
    write_flat_photos(tmp_path / "train", 12)
    write_flat_photos(tmp_path / "val", 4, seed=1)
    data = open_dataset(store(tmp_path, say=lines.append))
    assert (len(data.train), len(data.validation), len(data.test)) == (11, 1, 4)
    assert "val has no sub-folders" in data.test.unlabelled
    assert "train has no sub-folders" in data.train.unlabelled
    assert len([line for line in lines if "used without labels" in line]) == 2


def test_test_images_are_held_out_of_each_class(photos, lines):
    data = open_dataset(store(photos, say=lines.append, validation=None))
    assert list(np.bincount(data.test.labels)) == [2, 2, 2]
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    assert not any(split.unlabelled for split in (data.train, data.validation, data.test))
    assert not [line for line in lines if "warning" in line]


def test_the_same_folder_gives_the_same_test_images(photos):
    first = content_of(store(photos, "one", validation=None))
    assert content_of(store(photos, "two", validation=None)) == first


def test_too_few_images_to_hold_out_test_images(tmp_path):
    write_flat_photos(tmp_path / "train", 2)
    with pytest.raises(UserError, match=r"photos\.train: .*train: has 2 images, but at least 3"):
        store(tmp_path, validation=None)
    write_photos(tmp_path / "one", {"red": 5, "blue": 1})
    with pytest.raises(UserError, match=r"one: 1 of 2 classes have a single image"):
        store(tmp_path, train=str(tmp_path / "one"), validation=None)


def test_one_picture_in_many_formats_without_classes(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    turned = Image.fromarray(pixels.transpose(1, 0, 2)[::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left, to be shown turned to the right
    turned.save(folder / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    data = open_dataset(store(tmp_path, validation=None))
    images = [
        split.images[n] for split in (data.train, data.test) for n in range(len(split.images))
    ]
    assert len(images) == 3
    for image in images:
        np.testing.assert_array_equal(image, pixels)


def test_folder_without_images_or_classes(photos):
    shutil.rmtree(photos / "train")
    (photos / "train").mkdir()
    with pytest.raises(UserError, match=r"photos\.train: .*neither sub-folders nor images"):
        store(photos)


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_training_images_without_classes_have_no_labels(photos, lines, cache_gib):
    expected = [np.asarray(picture) for picture, _ in ImageFolder(photos / "train")]
    without_classes(photos / "train")
    data = open_dataset(store(photos, say=lines.append, cache_gib=cache_gib))
    assert data.classes == ("blue", "green", "red")
    assert set(data.train.labels) == {NO_LABEL}
    assert [data.train.images[n].mean((0, 1)) for n in range(30)] == [
        pytest.approx(image.mean((0, 1)), abs=2) for image in expected
    ]
    assert "used without labels: " in lines[0]
    assert "train has no sub-folders" in data.train.unlabelled


def test_empty_class_is_named(photos):
    for path in (photos / "train/green").iterdir():
        path.unlink()
    (photos / "train/green/notes.txt").touch()
    with pytest.raises(
        UserError, match=r"train has 1 of 3 classes without a readable image: green\."
    ):
        store(photos)


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_images_in_both_folders_cause_a_warning(photos, lines, cache_gib):
    shutil.copy(photos / "train/red/003.png", photos / "val/red/zz.png")
    shutil.copy(photos / "train/blue/001.png", photos / "val/green/zz.png")
    folder = store(photos, say=lines.append, cache_gib=cache_gib)
    [line] = [line for line in lines if line.startswith("warning")]
    assert f"dataset.photos: 2 of 14 images in {photos}/val are also training images" in line
    assert f"{photos}/val/red/zz.png is {photos}/train/red/003.png" in line
    assert f"{photos}/val/green/zz.png is {photos}/train/blue/001.png" in line
    assert json.loads((folder / "dataset.json").read_text())["in_both"] == 2


def test_folders_without_common_files_cause_no_warning(photos, lines):
    index = json.loads((store(photos, say=lines.append) / "dataset.json").read_text())
    assert "in_both" not in index
    assert not [line for line in lines if "warning" in line]


def test_scan_of_many_files_reports_progress(photos, progress_lines):
    lines = progress_lines(lambda: store(photos), tick=2.0)
    counts = [line.split(" (")[0] for line in lines]
    # The clock advances 2 s per file, so a line follows every third file (at least 5 s).
    assert counts[:2] == ["3/30 image sizes", "6/30 image sizes"]
    assert counts[-1] == "9/12 image sizes"


def test_folders_of_a_single_class(photos):
    for name in ("green", "red"):
        for part in ("train", "val"):
            shutil.rmtree(photos / part / name)
    data = open_dataset(store(photos))
    assert data.classes == ("blue",)
    assert (len(data.train) + len(data.validation), len(data.test)) == (10, 4)


def test_training_images_of_other_classes_have_no_labels(photos, lines):
    (photos / "val/red").rename(photos / "val/rouge")
    data = open_dataset(store(photos, say=lines.append))
    assert data.classes == ("blue", "green", "rouge")
    assert set(data.train.labels) == {NO_LABEL}
    assert list(np.bincount(data.test.labels)) == [4, 4, 4]
    reason = r"train and .*val have different classes: only .*train has red; only .*val has rouge"
    assert re.search(reason, lines[0])
    with pytest.raises(UserError, match=f"measuring accuracy needs labels, .*{reason}"):
        data.train.require_labels("measuring accuracy")
    data.test.require_labels("measuring accuracy")


@pytest.mark.parametrize("cache_gib", [0, 1])
@pytest.mark.parametrize("kept_bytes", [0, 20, 500])
def test_unreadable_image_is_named(photos, kept_bytes, cache_gib):
    path = photos / "train/green/003.png"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(
        UserError, match=r"photos\.train: .*train/green/003\.png .*cannot be read as an image"
    ):
        store(photos, cache_gib=cache_gib)
    assert not (photos / "made").exists()


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_unreadable_images_are_skipped_if_configured(photos, lines, cache_gib):
    skipped = [photos / "train" / name for name in ("blue/001.png", "green/003.png")]
    for path in skipped:
        path.write_bytes(b"no image at all")
    folder = store(photos, say=lines.append, skip_unreadable=True, cache_gib=cache_gib)
    data = open_dataset(folder)
    assert len(data.train) + len(data.validation) == 28
    assert np.bincount(data.train.labels).tolist() == [9, 9, 10]
    expected = ImageFolder(photos / "train", is_valid_file=lambda p: p not in map(str, skipped))
    assert len(expected) == len(data.train.images)
    for number, (picture, _) in enumerate(expected):
        image = data.train.images[number]
        assert min(image.shape[:2]) == min(40, *picture.size)
        assert image.mean((0, 1)) == pytest.approx(np.asarray(picture).mean((0, 1)), abs=2)
    [line] = [line for line in lines if "skipped" in line]
    assert "skipped 2 unreadable files" in line
    assert all(str(path) in line for path in skipped)


def test_class_with_only_unreadable_images_is_empty(photos):
    for path in (photos / "val/red").iterdir():
        path.write_bytes(b"no image at all")
    with pytest.raises(
        UserError, match=r"validation: .*1 of 3 classes without a readable image: red"
    ):
        store(photos, skip_unreadable=True)


def test_outputs_of_the_network_by_class(photos):
    data = open_dataset(store(photos, outputs={"red": 7, "blue": 900, "green": 0}))
    for split in (data.train, data.validation, data.test):
        assert split.outputs == (900, 0, 7)
    assert open_dataset(store(photos)).test.outputs is None


def test_outputs_that_name_other_classes(photos):
    with pytest.raises(
        UserError,
        match=r"dataset\.photos\.outputs: the dataset and the mapping have different classes: "
        r"only the dataset has green; only the mapping has gren\.",
    ):
        store(photos, outputs={"red": 7, "blue": 900, "gren": 0})


def test_full_disk_changes_nothing(photos, monkeypatch):
    before = content_of(store(photos))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="made: cannot be written: No space left"):
        store(photos, store_pixels=30)
    assert content_of(photos / "made") == before
    assert sorted(path.name for path in photos.iterdir()) == ["made", "train", "val"]


def test_truncated_pixels_are_detected(photos):
    path = store(photos) / "test_pixels.npy"
    np.save(path, np.load(path)[:-3])
    with pytest.raises(UserError, match=r"test_pixels\.npy: has \d+ bytes, but its images need"):
        open_dataset(photos / "made")


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_named_pipe_is_rejected_without_waiting(photos, lines, cache_gib):
    os.mkfifo(photos / "train/red/pipe.png")
    with pytest.raises(UserError, match=r"red/pipe\.png \(it is not a regular file, but a pipe"):
        store(photos, cache_gib=cache_gib)
    store(photos, "second", lines.append, cache_gib=cache_gib, skip_unreadable=True)
    assert any("skipped 1 unreadable files" in line for line in lines)


def test_file_that_becomes_a_pipe_is_rejected(photos):
    images = open_dataset(store(photos, cache_gib=0.0)).train.images
    (photos / "train/blue/000.png").unlink()
    os.mkfifo(photos / "train/blue/000.png")
    with pytest.raises(UserError, match=r"blue/000\.png: .*not a regular file"):
        images[0]


@pytest.mark.parametrize("place", [b"train/red/gr\xfcn.png", b"train/gr\xfcn/000.png"])
def test_name_that_is_not_utf8_is_rejected(photos, place):
    path = photos / os.fsdecode(place)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((photos / "train/red/000.png").read_bytes())
    with pytest.raises(UserError, match=r"1 names|2 names") as caught:
        store(photos)
    assert "gr\\xfcn" in str(caught.value)
    assert "convmv" in str(caught.value)
    str(caught.value).encode()


def test_cyclic_links_are_skipped(photos):
    expected = scan(photos / "train", "here")
    for name in ("one", "two"):
        (photos / "train/red" / name).symlink_to(photos / "train/red")
    (photos / "train/blue/up").symlink_to(photos / "train")
    assert scan(photos / "train", "here") == expected


def test_image_with_32_bits_per_channel_is_rejected(photos):
    Image.fromarray(np.ones((9, 9), np.float32)).save(photos / "val/red/float.tiff")
    with pytest.raises(UserError, match=r"red/float\.tiff \(its pixels are floating-point"):
        store(photos)
