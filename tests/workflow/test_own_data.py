"""A user's own data in other forms than folders with classes, in the real engine."""

import json
import shutil

import mynet
import numpy as np
import pytest
import torch
from photos import write_flat_photos
from projects import ROOT, Project

from lowrank.data.datasets import open_dataset

CLASSES = 3
FUNCTION = """
import numpy as np

def read(count):
    random = np.random.default_rng(0)
    return [(random.normal(size=(3, 32, 32)), number % 3) for number in range(count)]
"""


@pytest.fixture
def own(project: Project) -> Project:
    folder = project.folder
    shutil.copy(ROOT / "tests/mynet.py", folder / "mynet.py")
    torch.manual_seed(0)
    torch.save(mynet.build(CLASSES).state_dict(), folder / "mynet.pth")
    project.change_params(
        checkpoint={
            "mynet": {
                "factory": "mynet:build",
                "arguments": {"num_classes": CLASSES},
                "input_shape": [3, 32, 32],
                "dataset": "mine",
                "weights": "mynet.pth",
                "threads": 1,
            }
        },
        matrix={"models": ["mynet"], "methods": ["tucker"], "devices": ["local"]},
        methods={
            "tucker": {
                "factorize": {"conv": "tucker2", "norm": "activation", "images": 20},
                "ranks": {"select": "ratio", "ratio": 1.3},
                "schedule": {},
                "finetune": {"augment": {"pad_pixels": 0, "flip": False}},
                "quantize": "int8",
            }
        },
    )
    return project


@pytest.mark.slow
def test_arrays_of_a_user(own: Project):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(300, 3, 32, 32)).astype(np.float32)
    np.savez(own.folder / "x.npz", x=inputs, labels=np.arange(300) % CLASSES)
    own.change_params(dataset={"mine": {"kind": "arrays", "train": "x.npz"}})
    own.snakemake("results/mynet_tucker.json")
    result = json.loads((own.folder / "results/mynet_tucker.json").read_text())
    assert result["macs"]["ratio"] > 1.1
    assert result["export"]["relative_error"] < 1e-3
    assert result["reported"]["images"] == 60
    assert set(result["accuracy"]) >= {"original", "decomposed", "finetuned", "exported"}
    assert result["int8"]["accuracy"]["exported"] >= 0
    card = (own.folder / "models/mynet_tucker/mynet_tucker.md").read_text()
    assert "arrays as they are in the dataset" in card


def test_a_function_is_called_again_if_its_code_has_changed(own: Project):
    code = own.folder / "mydata.py"
    code.write_text(FUNCTION)
    entry = {"kind": "function", "function": "mydata:read", "arguments": {"count": 30}}
    own.change_params(dataset={"mine": entry})
    own.snakemake("data/datasets/mine")
    stored = own.folder / "data/datasets/mine/train_inputs.npy"
    assert np.load(stored).shape == (24, 3, 32, 32)
    code.write_text(FUNCTION.replace("default_rng(0)", "default_rng(1)"))
    before = stored.read_bytes()
    own.snakemake("data/datasets/mine")
    assert stored.read_bytes() != before


@pytest.mark.slow
def test_a_task_that_needs_labels_fails_in_the_step_that_opens_the_dataset(own: Project):
    write_flat_photos(own.folder / "photos", 30)
    own.change_params(dataset={"mine": {"kind": "imagefolder", "train": "photos"}})
    done = own.run("snakemake", "--cores", "1", "results/mynet_tucker.json", check=False)
    assert done.returncode != 0
    assert "measuring accuracy needs labels, but these images have none: photos has" in done.stdout
    assert not list((own.folder / "build").glob("mynet/*/first"))


@pytest.mark.slow
def test_calibration_images_are_stored_again_if_they_have_changed(own: Project):
    write_flat_photos(own.folder / "photos", 30)
    write_flat_photos(own.folder / "camera", 5, seed=1)
    own.change_params(
        dataset={"mine": {"kind": "imagefolder", "train": "photos"}},
        checkpoint__mynet__calibration="camera",
    )
    target = "build/mynet/original/splits"
    own.snakemake(target)
    splits = open_dataset(own.folder / "data/datasets/mine", own.folder / target)
    assert (len(splits.train), len(splits.calibration)) == (22, 5)
    (own.folder / "camera/000.png").unlink()
    own.snakemake(target)
    assert (
        len(open_dataset(own.folder / "data/datasets/mine", own.folder / target).calibration) == 4
    )
