"""Weights and image folders that must exist before anything runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.config.reading import load_params
from lowrank.errors import UserError
from lowrank.graph.folder_digests import digest_of_folder
from lowrank.graph.networks import SHIPPED_WEIGHTS
from lowrank.graph.pipeline import Graph
from lowrank.graph.source_files import read_source

ROOT = Path(__file__).parents[2]
JOB = SimpleNamespace(model="vgg16")


def test_the_list_of_shipped_weights_is_that_of_the_folder():
    folder = ROOT / "data/checkpoints"
    files = [str(path.relative_to(ROOT)) for path in folder.glob("*.safetensors")]
    assert sorted(files) == sorted(SHIPPED_WEIGHTS)


def test_weights_that_are_not_in_this_folder_come_with_the_workflow(tmp_path, monkeypatch):
    params = load_params(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    shipped = Graph(params, shipped=lambda path: f"/shipped/{path}")
    assert shipped.networks.weights(JOB) == "/shipped/data/checkpoints/vgg16.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):
        Graph(params).networks.weights(JOB)
    own = Path("data/checkpoints/vgg16.safetensors")
    own.parent.mkdir(parents=True)
    own.touch()
    assert shipped.networks.weights(JOB) == str(own)
    # The file of a user is not below the prefix, and Snakemake adds none to an absolute path.
    assert Graph(params, prefix="sub/").networks.weights(JOB) == str(own.absolute())


def test_a_missing_folder_of_images_is_an_error_before_anything_runs(tmp_path, monkeypatch):
    params = load_params(ROOT / "params.yaml")
    folders = {"kind": "imagefolder", "train": "photos/train", "validation": "photos/val"}
    dataset = type(params.dataset["cifar10"]).model_validate(folders)
    params = params.model_copy(update={"dataset": {"mine": dataset}})
    monkeypatch.chdir(tmp_path)
    networks, job = Graph(params).networks, SimpleNamespace(dataset="mine")
    Path("photos/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"photos/val: no such folder \(`dataset.mine.validation`"):
        networks.image_files(job)
    dataset = dataset.model_copy(update={"kind": "arrays", "train": "photos", "validation": None})
    arrays = params.model_copy(update={"dataset": {"mine": dataset}})
    with pytest.raises(UserError, match=r"photos: no such file \(`dataset.mine.train` in"):
        Graph(arrays).networks.image_files(job)
    # The dataset holds all images, so the folders are no longer needed.
    Path("data/datasets/mine").mkdir(parents=True)
    assert networks.image_files(job)


def graph_with(**settings):
    params = load_params(ROOT / "params.yaml")
    dataset = type(params.dataset["cifar10"]).model_validate(settings)
    return Graph(params.model_copy(update={"dataset": {"mine": dataset}}))


def test_the_digest_of_a_dataset_is_that_of_its_files_or_code(tmp_path, monkeypatch):
    graphs = {
        "x.npy": graph_with(kind="arrays", train="x.npy"),
        "helpers.py": graph_with(kind="function", function="mydata:read"),
    }
    monkeypatch.chdir(tmp_path)
    Path("mydata.py").write_text("from helpers import count\n\ndef read():\n    return count\n")
    for name, content in (("x.npy", "1"), ("helpers.py", "count = 1\n")):
        Path(name).write_text(content)
        job = SimpleNamespace(dataset="mine")
        before = graphs[name].networks.image_files(job)
        Path(name).write_text(content.replace("1", "20"))
        # A run reads each file once.
        digest_of_folder.cache_clear()
        read_source.cache_clear()
        assert graphs[name].networks.image_files(job) != before
