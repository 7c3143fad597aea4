"""The delivered networks as artifacts of DVC."""

from pathlib import Path

import pytest
import yaml
from dvc.repo.artifacts import check_name_format
from projects import ROOT, Project

from lowrank.config.reading import load_params


def test_each_delivered_network_of_the_matrix_is_an_artifact():
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    matrix = load_params(ROOT / "params.yaml").matrix
    variants = [f"{model}_{method}" for model in matrix.models for method in matrix.methods]
    assert {name: artifact["path"] for name, artifact in artifacts.items()} == {
        variant.replace("_", "-"): f"models/{variant}" for variant in variants
    }, "Correct `artifacts` in dvc.yaml: one entry for each variant of `matrix` in params.yaml."
    for name, artifact in artifacts.items():
        check_name_format(name)
        assert artifact["type"] == "model"


@pytest.mark.slow
def test_networks_are_taken_from_another_repository(recorded: Project, tmp_path: Path):
    recorded.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    recorded.run("git", "commit", "--quiet", "--all", "--message", "remote")
    # DVC ignores a tag without a message.
    recorded.run("git", "tag", "--message", "first version", "resnet20-tucker@v1.0.0")
    recorded.run("dvc", "push")
    recorded.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    network = "resnet20_tucker_int8.onnx"
    output = elsewhere.run("dvc", "artifacts", "get", "../clone", "resnet20-tucker").stdout
    # As in docs/dvc-and-snakemake.md: two networks, a card for each, params.yaml and .gitignore.
    assert "Downloaded 6 file(s) to 'resnet20_tucker'" in output
    elsewhere.run("dvc", "get", "../clone", f"models/resnet20_tucker/{network}")
    expected = (recorded.folder / "models/resnet20_tucker" / network).read_bytes()
    assert (elsewhere.folder / network).read_bytes() == expected
    assert (elsewhere.folder / "resnet20_tucker" / network).read_bytes() == expected
