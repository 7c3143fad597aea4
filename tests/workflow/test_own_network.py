"""A user's own network and images, with two entries in params.yaml and one command."""

import json
import shutil

import mynet
import pytest
import torch
from photos import COLOURS, write_photos
from projects import ROOT, Project

from lowrank.core.stored import read_header


@pytest.fixture
def own(project: Project) -> Project:
    folder = project.folder
    shutil.copy(ROOT / "tests/mynet.py", folder / "mynet.py")
    write_photos(folder / "photos/train", dict.fromkeys(COLOURS, 20), seed=1)
    write_photos(folder / "photos/val", dict.fromkeys(COLOURS, 7), seed=2)
    torch.manual_seed(0)
    torch.save(mynet.build(len(COLOURS)).state_dict(), folder / "mynet.pth")
    project.change_params(
        dataset={
            "mine": {"kind": "imagefolder", "train": "photos/train", "validation": "photos/val"}
        },
        checkpoint={
            "mynet": {
                "factory": "mynet:build",
                "arguments": {"num_classes": len(COLOURS)},
                "input_shape": [3, 32, 32],
                "dataset": "mine",
                "weights": "mynet.pth",
                "threads": 1,
            }
        },
        matrix={"models": ["mynet"], "methods": ["tucker"], "devices": ["local"]},
        methods={
            "tucker": {
                "factorize": {
                    "first_conv": "tucker1",
                    "conv": "tucker2",
                    "pointwise_conv": "svd",
                    "flattened_linear": "tucker2",
                    "linear": "svd",
                },
                "ranks": {"select": "ratio", "ratio": 1.3},
                "schedule": {},
                "finetune": {},
            }
        },
    )
    return project


@pytest.mark.slow
def test_the_network_is_compressed_and_measured(own: Project):
    own.snakemake("results/mynet_tucker.json")
    result = json.loads((own.folder / "results/mynet_tucker.json").read_text())
    assert result["macs"]["ratio"] > 1.1
    assert result["export"]["relative_error"] < 1e-3
    assert result["latency_ms"]["local"]["speedup"] > 0
    assert set(result["accuracy"]) >= {"original", "decomposed", "finetuned", "exported"}
    layers = {
        layer["layer"]: layer
        for layer in json.loads((own.folder / "results/plots/mynet_tucker/layers.json").read_text())
    }
    assert layers["block.conv1"]["form"] == "tucker2"  # dilated, no bias
    assert layers["left"]["form"] == "tucker2"  # strided
    assert layers["hidden"]["form"] == "tucker2"  # after a flattened map
    assert layers["depthwise"]["form"] == "dense"
    assert "depthwise" in layers["depthwise"]["notes"]
    state = own.folder / "build/mynet/tucker/rounds/1/model.safetensors"
    assert read_header(state)["network"]["factory"] == "mynet:build"
    assert "Nothing to be done" in own.snakemake("results/mynet_tucker.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint__mynet__factory": "mynett:build"}, "mynett"),
        ({"checkpoint__mynet__arguments": {"num_classes": 4}}, "mynet.pth: tensor"),
        ({"dataset__mine__train": "photos/trian"}, "photos/trian"),
    ],
)
def test_errors_in_params_yaml_are_reported(own: Project, change: dict, message: str):
    own.change_params(**change)
    done = own.run("snakemake", "--cores", "1", "results/mynet_tucker.json", check=False)
    assert done.returncode != 0
    assert message in done.stdout
    # Snakemake adds three lines of its own if the graph cannot be built.
    assert "Traceback (most recent call last)" not in done.stdout
    assert not (own.folder / "build/mynet/original/model.safetensors").exists()
