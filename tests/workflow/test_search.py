"""A target of `accuracy_drop`: a search with trials, run on a small network."""

import json

import pytest
from projects import BUILD, SEARCHING, Project, job_counts

MILD = {"select": "ratio", "ratio": 1.5, "negligible": 0}
RANKS = SEARCHING["ranks"]


@pytest.fixture
def searching(project: Project) -> Project:
    project.change_params(methods={"tucker": SEARCHING}, studies={})
    return project


def read(project: Project, path: str):
    return json.loads((project.folder / path).read_text())


@pytest.mark.slow
def test_the_best_trial_becomes_the_network(searching):
    names = ("first/ranks.json", "rounds/1/model.safetensors")
    files = [f"{BUILD}/tucker/{name}" for name in names]
    searching.snakemake(*files)
    shares = [read(searching, f"{BUILD}/tucker/search/{n}/share.json")["share"] for n in (1, 2)]
    assert shares == pytest.approx([0.93915, 0.91937], abs=1e-4)
    assert read(searching, f"{BUILD}/tucker/search/chosen.json")["taken"] == 2
    for name in names:
        content = (searching.folder / BUILD / "tucker/search/2" / name).read_bytes()
        assert (searching.folder / BUILD / "tucker" / name).read_bytes() == content
    # The second trial reuses the losses of layers that the first has measured.
    first, second = (
        read(searching, f"{BUILD}/tucker/search/{n}/first/ranks.json")["losses"] for n in (1, 2)
    )
    assert first
    assert all(loss in second for loss in first)
    assert job_counts(searching.snakemake("-n", *files)) == {}


def test_a_search_with_several_rounds_is_refused(searching):
    searching.change_params(methods__tucker__schedule={"kind": "iterative"})
    done = searching.run("snakemake", "-n", check=False)
    assert done.returncode
    assert "needs `schedule: {kind: one_shot}`" in done.stdout


def test_the_result_of_a_trial_comes_from_its_folder(searching):
    trial = f"{BUILD}/tucker/search/1"
    dry = searching.snakemake("-n", "results/resnet20_tucker_trial1.json")
    assert f"{trial}/model.onnx" in dry
    assert f"{BUILD}/tucker_trial1" not in dry
    assert {"settle", "take_plan", "take_network"}.isdisjoint(job_counts(dry))


@pytest.mark.slow
def test_dvc_builds_a_matrix_with_a_search(project: Project, tmp_path):
    plain = {"factorize": {"first_conv": "tucker1"}, "ranks": MILD, "finetune": {"steps": 1}}
    searching = SEARCHING | {"quantize": "int8"}
    project.change_params(
        methods={"tucker": plain, "lowrank": searching},
        matrix__methods=["tucker", "lowrank"],
        studies={},
    )
    project.run("dvc", "repro", "code")
    project.run("dvc", "commit", "--force", "dataset")
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status").stdout
    result = read(project, "results/resnet20_lowrank.json")
    assert result["search"]["taken"] == 2
    assert read(project, "results/resnet20_tucker.json").get("search") is None
    folder = project.folder / BUILD / "lowrank"
    content = (folder / "search/2/rounds/1/model.safetensors").read_bytes()
    assert (folder / "rounds/1/model.safetensors").read_bytes() == content
    # Everything that the trials made belongs to the stage of the search.
    assert {path.name for path in (project.folder / BUILD).iterdir()} == {
        *("original", "tucker", "lowrank")
    }
    project.run("lowrank", "adopt")
    assert "Nothing to be done" in project.snakemake("--dry-run", "results/summary.csv")

    # A clone that pulls needs to build nothing.
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "built")
    project.run("dvc", "push")
    project.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.run("dvc", "pull")
    clone.run("lowrank", "adopt")
    assert "Nothing to be done" in clone.snakemake("--dry-run", "results/summary.csv")

    # Of fewer trials, nothing remains of the others, and only the search runs again.
    searching["ranks"] = RANKS | {"search": RANKS["search"] | {"trials": 1}}
    project.change_params(methods__lowrank=searching)
    output = project.run("dvc", "repro").stdout
    assert "Running stage 'settle@resnet20-lowrank'" in output
    assert "Running stage 'finetune@resnet20-tucker'" not in output
    assert read(project, "results/resnet20_lowrank.json")["search"]["trials"] == 1
    assert not (folder / "search/2").exists()


@pytest.mark.slow
def test_what_snakemake_built_of_a_search_is_recorded(searching):
    searching.change_params(methods__tucker={**SEARCHING, "quantize": "int8"})
    searching.run("dvc", "repro", "code")
    searching.run("dvc", "commit", "--force", "dataset")
    searching.run("lowrank", "record")
    assert "up to date" in searching.run("dvc", "status").stdout
    fewer = RANKS | {"search": RANKS["search"] | {"trials": 1}}
    searching.change_params(methods__tucker=SEARCHING | {"ranks": fewer})
    searching.run("lowrank", "record")
    assert "up to date" in searching.run("dvc", "status").stdout
    names = {path.name for path in (searching.folder / BUILD / "tucker/search").iterdir()}
    assert names == {"1", "chosen.json"}
