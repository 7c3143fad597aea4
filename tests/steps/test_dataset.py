import numpy as np
import pytest
from click.testing import CliRunner

from lowrank.errors import UserError
from lowrank.steps.dataset import dataset
from lowrank.training import sources
from lowrank.training.datasets import open_dataset


@pytest.fixture
def known(monkeypatch):
    """Stand in for the sources; gives the folders that were searched."""
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


def test_stores_what_open_dataset_reads(known, tmp_path):
    output, log = tmp_path / "datasets" / "cifar10", tmp_path / "log"
    result = run("--name", "cifar10", "--output", output, "--search", tmp_path, "--log", log)
    assert result.exit_code == 0, result.output
    data = open_dataset(output)
    assert (data.name, data.classes) == ("cifar10", sources.CIFAR10_CLASSES)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert known == [tmp_path]
    assert "obtained from the test" in log.read_text()
    assert "20 training and 4 test images" in log.read_text()


def test_unknown_name_suggests_the_known_one(tmp_path):
    result = run("--name", "cifar", "--output", tmp_path / "made")
    assert result.exit_code == 1
    assert "--name: unknown dataset 'cifar'. Did you mean 'cifar10'?" in result.output
    assert not (tmp_path / "made").exists()


def test_foreign_output_is_refused_before_anything_is_fetched(known, tmp_path):
    (tmp_path / "notes.txt").touch()
    result = run("--name", "cifar10", "--output", tmp_path)
    assert result.exit_code == 1
    assert "holds files but no dataset.json" in result.output
    assert known == []


def test_nothing_reachable_leaves_no_folder(tmp_path, monkeypatch):
    def obtain(search, say):
        raise UserError("CIFAR-10 could not be obtained.")

    known = sources.KnownDataset(sources.CIFAR10_CLASSES, obtain)
    monkeypatch.setitem(sources.DATASETS, "cifar10", known)
    result = run("--name", "cifar10", "--output", tmp_path / "made")
    assert result.exit_code == 1
    assert "error: CIFAR-10 could not be obtained." in result.output
    assert not list(tmp_path.iterdir())
