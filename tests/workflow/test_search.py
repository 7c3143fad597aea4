"""A target of `accuracy_drop`: a search with trials, run on a small network."""

import json

import pytest
from projects import BUILD, Project, job_counts

LAYERS = ["blocks.3.conv2", "blocks.4.conv2"]
RANKS = {
    "select": "budget",
    "images": 10,
    "negligible": 0,
    "target": {"accuracy_drop": 99.0},
    "search": {"cost": "macs", "between": [0.9, 0.98], "trials": 2},
}


@pytest.fixture
def searching(project: Project) -> Project:
    tucker = {
        "factorize": {"conv": "tucker2", "include": LAYERS, "norm": "activation", "images": 20},
        "ranks": RANKS,
        "finetune": {"steps": 1},
    }
    project.change_params(methods={"tucker": tucker}, studies={})
    return project


def read(project: Project, path: str):
    return json.loads((project.folder / path).read_text())


@pytest.mark.slow
def test_the_best_trial_becomes_the_network(searching):
    network = f"{BUILD}/tucker/rounds/1/model.safetensors"
    searching.snakemake(network)
    shares = [read(searching, f"{BUILD}/tucker/search/{n}.json")["share"] for n in (1, 2)]
    assert shares == pytest.approx([0.93915, 0.91937], abs=1e-4)
    assert read(searching, f"{BUILD}/tucker/search.json")["taken"] == 2
    for name in ("first/ranks.json", "rounds/1/model.safetensors"):
        content = (searching.folder / BUILD / "tucker_trial2" / name).read_bytes()
        assert (searching.folder / BUILD / "tucker" / name).read_bytes() == content
    # The second trial reuses the losses of layers that the first has measured.
    first, second = (
        read(searching, f"{BUILD}/tucker_trial{n}/first/ranks.json")["losses"] for n in (1, 2)
    )
    assert first
    assert all(loss in second for loss in first)
    assert job_counts(searching.snakemake("-n", network)) == {}


def test_a_search_with_several_rounds_is_refused(searching):
    searching.change_params(methods__tucker__schedule={"kind": "iterative"})
    done = searching.run("snakemake", "-n", check=False)
    assert done.returncode
    assert "needs `schedule: {kind: one_shot}`" in done.stdout
