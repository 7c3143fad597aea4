"""The step that obtains and stores datasets."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from photos import write_flat_photos, write_photos
from pydantic import ValidationError

from lowrank.config.dataset import DatasetSettings
from lowrank.data import sources
from lowrank.data.datasets import open_dataset
from lowrank.errors import UserError
from lowrank.steps.dataset import dataset

CLASSES = sources.CIFAR10_CLASSES


@pytest.fixture
def known(monkeypatch):
    """Replace the source of CIFAR-10, and return the folders that were searched."""
    searched = []

    def obtain(search, say):
        searched.append(search)
        say("obtained from the test")
        return {
            f"{split}_{part}": np.zeros((count, *shape), np.uint8)
            for split, count in (("train", 20), ("test", 4))
            for part, shape in (("images", (32, 32, 3)), ("labels", ()))
        }

    known = sources.KnownDataset(sources.CIFAR10_CLASSES, obtain)
    monkeypatch.setitem(sources.DATASETS, "cifar10", known)
    return searched


def run(*arguments):
    return CliRunner().invoke(dataset, [str(argument) for argument in arguments])


def test_the_stored_dataset_can_be_opened(known, tmp_path):
    output, log = tmp_path / "datasets" / "cifar10", tmp_path / "log"
    settings = f'{{"search": "{tmp_path}"}}'
    result = run("--dataset", "cifar10", "--output", output, "--settings", settings, "--log", log)
    assert result.exit_code == 0, result.output
    data = open_dataset(output)
    assert (data.name, data.classes) == ("cifar10", sources.CIFAR10_CLASSES)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert known == [tmp_path]
    assert "obtained from the test" in log.read_text()
    assert "20 training and 4 test images" in log.read_text()


def test_an_entry_with_another_name_needs_a_kind(known, tmp_path):
    settings = {"kind": "cifar10", "outputs": {c: 99 - n for n, c in enumerate(CLASSES)}}
    result = run(
        "--dataset", "mine", "--output", tmp_path / "mine", "--settings", json.dumps(settings)
    )
    assert result.exit_code == 0, result.output
    data = open_dataset(tmp_path / "mine")
    assert (data.name, data.classes) == ("mine", CLASSES)
    assert data.test.outputs == tuple(range(99, 89, -1))


def test_an_entry_without_a_known_kind_is_an_error(tmp_path):
    result = run("--dataset", "cifar", "--output", tmp_path / "made")
    assert result.exit_code == 1
    assert (
        "`dataset.cifar.kind` is missing; expected one of cifar10, fashion_mnist" in result.output
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("imagefolder", {}, "of kind imagefolder needs `train`"),
        ("mine", {"kind": "arrays"}, "of kind arrays needs `train`"),
        ("mine", {"kind": "function"}, "of kind function needs `function`"),
        (
            "cifar10",
            {"train": "here", "validation": "there"},
            "of kind cifar10 takes no `train`",
        ),
    ],
)
def test_folders_belong_to_image_folders(tmp_path, name, settings, reason):
    arguments = ("--output", tmp_path / "made", "--settings", json.dumps(settings))
    result = run("--dataset", name, *arguments)
    assert result.exit_code == 1
    assert f"`dataset.{name}` {reason}" in result.output


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"validation": "here"}, "`validation` needs `train`"),
        ({"kind": "arrays", "train": "x.npy", "store_pixels": 8}, "cannot be used with `kind: arr"),
        ({"kind": "function", "function": "a:b", "train": "x"}, "cannot be used with `kind: func"),
        ({"kind": "imagefolder", "train": "x", "function": "a:b"}, "belongs to `kind: function`"),
        ({"kind": "function", "function": "no function"}, "should match pattern"),
        ({"outputs": {"a": 1, "b": 1}}, "`outputs` assigns output 1 to two classes"),
    ],
)
def test_contradictory_settings_are_an_error(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        DatasetSettings.model_validate(settings)


def test_a_mapping_of_other_classes_is_an_error_before_any_download(known, tmp_path):
    settings = '{"outputs": {"cat": 5}}'
    result = run("--dataset", "cifar10", "--output", tmp_path / "made", "--settings", settings)
    assert result.exit_code == 1
    assert "dataset.cifar10.outputs: the dataset and the mapping have differ" in result.output
    assert known == []


def test_image_folders(tmp_path):
    write_photos(tmp_path / "train", {"red": 10, "blue": 5})
    write_photos(tmp_path / "val", {"red": 2, "blue": 2})
    settings = {
        "kind": "imagefolder",
        "train": str(tmp_path / "train"),
        "validation": str(tmp_path / "val"),
    }
    output, log = tmp_path / "made", tmp_path / "log"
    arguments = ("--output", output, "--settings", json.dumps(settings), "--log", log)
    result = run("--dataset", "photos", *arguments)
    assert result.exit_code == 0, result.output
    data = open_dataset(output)
    assert (data.name, data.classes) == ("photos", ("blue", "red"))
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 1, 4)
    assert "15 training and 4 test images stored in" in log.read_text()
    (tmp_path / "val/red/000.png").write_bytes(b"")
    result = run("--dataset", "photos", *arguments)
    assert result.exit_code == 1
    assert "val/red/000.png" in result.output
    assert len(open_dataset(output).test) == 4


def test_a_folder_without_classes(tmp_path):
    write_flat_photos(tmp_path / "photos", 20)
    settings = json.dumps({"kind": "imagefolder", "train": str(tmp_path / "photos")})
    result = run("--dataset", "mine", "--output", tmp_path / "made", "--settings", settings)
    assert result.exit_code == 0, result.output
    assert "without `validation`, 4 of 20 images in" in result.output
    assert "16 training and 4 test images stored in" in result.output
    assert open_dataset(tmp_path / "made").test.unlabelled


def test_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((20, 3, 8, 8), np.float32))
    settings = json.dumps({"kind": "arrays", "train": str(tmp_path / "x.npy")})
    result = run("--dataset", "mine", "--output", tmp_path / "made", "--settings", settings)
    assert result.exit_code == 0, result.output
    assert "16 training and 4 test images stored in" in result.output
    assert open_dataset(tmp_path / "made").train.images[0].shape == (3, 8, 8)


def test_a_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "photos_of_mine.py").write_text(
        "import numpy\n\ndef read(count):\n    return numpy.ones((count, 3, 8, 8))\n"
    )
    settings = {"kind": "function", "function": "photos_of_mine:read", "arguments": {"count": 20}}
    arguments = ("--dataset", "mine", "--output", tmp_path / "made")
    result = run(*arguments, "--settings", json.dumps(settings))
    assert result.exit_code == 0, result.output
    assert "16 training and 4 test images stored in" in result.output
    assert open_dataset(tmp_path / "made").train.images[0].dtype == np.float32


@pytest.mark.parametrize("folder", ["nothing", "empty"])
def test_a_folder_without_images(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    settings = json.dumps({"kind": "imagefolder", "train": str(tmp_path / folder)})
    result = run("--dataset", "mine", "--output", tmp_path / "made", "--settings", settings)
    assert result.exit_code == 1
    reasons = {"nothing": "is not a folder. Set it to a folder", "empty": "has neither sub-folders"}
    assert f"dataset.mine.train: {tmp_path / folder} {reasons[folder]}" in result.output
    assert not (tmp_path / "made").exists()


def test_a_foreign_output_folder_is_refused_before_any_download(known, tmp_path):
    (tmp_path / "notes.txt").touch()
    result = run("--dataset", "cifar10", "--output", tmp_path)
    assert result.exit_code == 1
    assert "holds files but no dataset.json" in result.output
    assert known == []


def test_a_failed_download_leaves_no_folder(tmp_path, monkeypatch):
    def obtain(search, say):
        raise UserError("CIFAR-10 could not be obtained.")

    known = sources.KnownDataset(sources.CIFAR10_CLASSES, obtain)
    monkeypatch.setitem(sources.DATASETS, "cifar10", known)
    result = run("--dataset", "cifar10", "--output", tmp_path / "made")
    assert result.exit_code == 1
    assert "error: CIFAR-10 could not be obtained." in result.output
    assert not list(tmp_path.iterdir())
