"""The handovers between Snakemake and DVC: record, adopt, push, pull; and DVC on its own."""

import json
import shutil

import mynet
import pytest
import torch
import yaml
from projects import METRICS, RESULT, ROOT, Project, job_counts

SUMMARY = "results/summary.csv"
PICTURES = "pictures/resnet20_tucker/"


def test_after_recording_dvc_has_nothing_to_do(recorded: Project):
    assert "up to date" in recorded.run("dvc", "status").stdout
    assert "Nothing to be done" in recorded.snakemake("--dry-run", SUMMARY)


def test_a_clone_pulls_and_adopts(recorded: Project, tmp_path):
    recorded.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    recorded.run("git", "commit", "--quiet", "--all", "--message", "remote")
    recorded.run("dvc", "push")
    recorded.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")

    refused = clone.run("lowrank", "adopt", check=False)
    assert refused.returncode == 1
    assert "dvc pull" in refused.stdout

    clone.run("dvc", "pull")
    clone.run("lowrank", "adopt")
    assert "up to date" in clone.run("dvc", "status").stdout
    assert "Nothing to be done" in clone.snakemake("--dry-run", SUMMARY)
    # All files except the pictures, which only Snakemake draws.
    expected = recorded.files()
    assert clone.files() == {
        name: content for name, content in expected.items() if PICTURES not in name
    }


def test_dvc_alone_builds_the_same_and_diffs_metrics(recorded: Project):
    before = json.loads((recorded.folder / RESULT).read_text())
    shown = json.loads(recorded.run("dvc", "metrics", "show", "--json").stdout)
    assert shown[""]["data"].keys() == {METRICS}
    recorded.change_params(finetune__steps=3)
    output = recorded.run("dvc", "repro").stdout
    assert "Running stage 'finetune@resnet20-tucker'" in output
    for name in ("checkpoint@resnet20", "select_ranks@resnet20-tucker", "export_original@resnet20"):
        assert f"Running stage '{name}'" not in output
    assert "up to date" in recorded.run("dvc", "status").stdout
    recorded.run("lowrank", "adopt")
    assert "Nothing to be done" in recorded.snakemake("--dry-run", SUMMARY)

    recorded.run("git", "commit", "--quiet", "--all", "--message", "fewer steps")
    after = json.loads((recorded.folder / RESULT).read_text())
    assert after["finetune"]["steps"] == 3
    printed = recorded.run("dvc", "metrics", "diff", "HEAD~1", "--md").stdout
    rows = [line for line in printed.splitlines() if line.startswith("| ") and METRICS in line]
    assert 1 <= len(rows) <= 10, printed
    assert any("finetune.steps" in row for row in rows)
    diff = json.loads(recorded.run("dvc", "metrics", "diff", "HEAD~1", "--all", "--json").stdout)
    steps = diff[METRICS]["finetune.steps"]
    assert (steps["old"], steps["new"]) == (4, 3)
    latency = diff[METRICS]["latency_ms.local.compressed.p50"]
    assert latency["old"] == before["latency_ms"]["local"]["compressed"]["p50"]
    assert latency["new"] == after["latency_ms"]["local"]["compressed"]["p50"]
    accuracy = diff[METRICS]["accuracy.exported"]
    assert accuracy["new"] == after["accuracy"]["exported"]
    params = json.loads(recorded.run("dvc", "params", "diff", "HEAD~1", "--json").stdout)
    assert params["params.yaml"]["finetune.steps"] == {"old": 4, "new": 3, "diff": -1}


@pytest.mark.slow
def test_dvc_builds_a_method_of_int8_alone(project: Project):
    project.change_params(methods__mine={"quantize": "int8"}, matrix__methods=["mine"])
    project.run("dvc", "repro", "code")
    project.run("dvc", "commit", "--force", "dataset")
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status").stdout
    result = json.loads((project.folder / "results/resnet20_mine.json").read_text())
    assert (result["rounds"], result["int8"]["accuracy"]) == (
        0,
        result["control"]["int8"]["accuracy"],
    )


@pytest.mark.slow
def test_dvc_builds_rounds_from_scratch_and_experiments(project: Project):
    # The method needs the moments of each round's inputs, which are temporary files.
    factorize = {"first_conv": "tucker1", "linear": "svd", "norm": "activation", "images": 80}
    project.change_params(
        methods__tucker__schedule={"kind": "iterative"}, methods__tucker__factorize=factorize
    )
    project.run("dvc", "repro", "code")
    project.run("dvc", "commit", "--force", "dataset")
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status").stdout
    assert json.loads((project.folder / RESULT).read_text())["rounds"] == 2
    project.run("lowrank", "adopt")
    assert "Nothing to be done" in project.snakemake("--dry-run", SUMMARY)
    assert not list(project.folder.glob("build/moments/**/*.safetensors"))
    project.change_params(methods__tucker__factorize=factorize | {"images": 90})
    jobs = job_counts(project.snakemake("--dry-run", SUMMARY))
    assert (jobs["calibrate"], jobs["decompose"]) == (2, 2)
    project.change_params(methods__tucker__factorize=factorize)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "built")
    project.run("dvc", "exp", "run", "--set-param", "finetune.steps=2")
    # Two steps in each of two rounds.
    assert json.loads((project.folder / RESULT).read_text())["finetune"]["steps"] == 4
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.folder / "plots/index.html").read_text()
    for plot in ("resnet20_tucker_curve_json", "Accuracy by latency", "Accuracy by MACs"):
        assert plot in page


@pytest.mark.slow
def test_dvc_builds_a_new_network_of_the_matrix(recorded: Project):
    project, folder = recorded, recorded.folder
    shutil.copy(ROOT / "tests/mynet.py", folder / "mynet.py")
    torch.manual_seed(0)
    torch.save(mynet.build(10).state_dict(), folder / "mynet.pth")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    entry = {
        "factory": "mynet:build",
        "arguments": {"num_classes": 10},
        "input_shape": [3, 32, 32],
        "dataset": "cifar10",
        "weights": "mynet.pth",
        "threads": 1,
    }
    project.change_params(
        checkpoint=params["checkpoint"] | {"mynet": entry},
        matrix__models=["resnet20", "mynet"],
    )
    stages = folder / "dvc.yaml"
    stages.write_text(stages.read_text().replace("# - mypackage", "- mynet.py"))
    table = folder / "data/networks/mynet.json"
    assert not table.exists()
    output = project.run("dvc", "repro").stdout
    assert "block.conv1" in table.read_text()
    assert json.loads((folder / "results/mynet_tucker.json").read_text())["rounds"] == 1
    assert (folder / "models/mynet_tucker/mynet_tucker.onnx").exists()
    assert "| mynet | tucker |" in (folder / "results/summary.md").read_text()
    assert "Running stage 'finetune@resnet20-tucker'" not in output
    assert "up to date" in project.run("dvc", "status").stdout
