"""Methods of several rounds, really run on a small network."""

import json

import pytest
from projects import BUILD, Project

from lowrank.core.layers import LayerTable
from lowrank.core.stored import read_header
from lowrank.files import read_json

# Three layers of twenty: a first convolution, one in the middle, the linear layer.
TAKEN = ["conv", "blocks.3.conv2", "classifier"]
# So small a classifier would stay dense.
ALL = {"negligible": 0}
PLENTY = ALL | {"select": "ratio", "ratio": 1.5}


@pytest.fixture
def with_method(project: Project):
    def change(**method) -> Project:
        factorize = {"first_conv": "channel_svd", "conv": "cp_tpm", "linear": "svd"}
        project.change_params(
            methods={
                "tucker": {
                    "factorize": factorize | {"include": TAKEN},
                    "ranks": PLENTY,
                    "schedule": {},
                    "finetune": {},
                }
                | method
            },
            studies={},
        )
        return project

    return change


def rounds_of(project: Project) -> dict[str, dict[str, str]]:
    """For each round the layers that are factored after it, with their forms."""
    project.snakemake(f"{BUILD}/tucker/model.onnx")
    states = sorted((project.folder / BUILD / "tucker/rounds").glob("*/model.safetensors"))
    return {
        state.parent.name: {
            name: factored["factorization"]
            for name, factored in read_header(state)["factored"].items()
        }
        for state in states
    }


def document(project: Project, path: str):
    return json.loads((project.folder / BUILD / "tucker" / path).read_text())


@pytest.mark.slow
def test_convolutions_in_turn_then_linear_layers_by_sensitivity(with_method):
    project = with_method(
        ranks=ALL | {"select": "sensitivity", "ratio": 1.5, "trial_ratio": 2.0, "images": 10},
        schedule={"kind": "hybrid", "order": ["blocks.3.conv2"]},
        finetune={"total_steps": 4, "last_share": 0.5},
    )
    taken = list(rounds_of(project).values())
    assert taken[0] == {"blocks.3.conv2": "cp_tpm"}
    # The first convolution comes next; with little to spare it may stay as it is.
    assert taken[1].items() >= taken[0].items()
    assert document(project, "rounds/2/ranks.json")["layers"][0]["name"] == "conv"
    assert taken[2] == taken[1] | {"classifier": "svd"}
    plan = document(project, "first/ranks.json")
    assert set(plan["sensitivity"]) == set(plan["shares"]) == set(TAKEN)
    assert plan["sensitivity"]["classifier"] == 1
    assert plan["sensitivity"]["conv"] + plan["sensitivity"]["blocks.3.conv2"] == pytest.approx(1)
    later = document(project, "rounds/3/ranks.json")
    assert later["layers"][0]["chosen"] == plan["shares"]["classifier"]["ranks"]
    assert "sensitivity" not in later
    assert [document(project, f"rounds/{n}/timing.json")["steps"] for n in (1, 2, 3)] == [1, 1, 2]
    # The test images are looked at once, at the end.
    measured = [document(project, f"rounds/{n}/metrics.json")["accuracy"] for n in (1, 3)]
    assert set(measured[0]["finetuned"]) == {"validation"}
    assert set(measured[1]["finetuned"]) == {"validation", "test"}


@pytest.mark.slow
def test_a_target_is_met_by_layers_in_turn(with_method):
    """The moments of all layers are there when ranks are shared out, before the first round."""
    factorize = {"conv": "tucker2", "linear": "svd", "include": TAKEN[1:]}
    project = with_method(
        factorize=factorize | {"norm": "activation", "images": 20, "alternatives": ["spatial_svd"]},
        ranks=ALL | {"select": "budget", "target": {"macs": 0.96}, "images": 10},
        schedule={"kind": "iterative"},
        finetune={"total_steps": 2},
    )
    taken = list(rounds_of(project).values())
    assert set(taken[-1]) <= set(TAKEN[1:])
    plan = document(project, "first/ranks.json")
    assert set(plan["shares"]) == set(TAKEN[1:])
    table = LayerTable.from_json(read_json(project.folder / "data/networks/resnet20.json"))
    total = sum(layer.dense_macs for layer in table.layers)
    planned = [
        document(project, f"{at}/ranks.json")["layers"][0]["macs"] for at in ("first", "rounds/2")
    ]
    assert 0.94 <= 1 - sum(before - after for before, after in planned) / total <= 0.96
    assert not project.snakemake("-n", f"{BUILD}/tucker/model.onnx").count("rule ")


@pytest.mark.slow
def test_a_target_of_milliseconds_is_measured_here(with_method):
    project = with_method(
        factorize={"conv": "tucker2"},
        ranks=ALL
        | {"select": "budget", "target": {"latency_ms": {"local": 0.9}}, "images": 10}
        | {"multiple_of": 8},
    )
    plan = f"{BUILD}/tucker/first/ranks.json"
    said = project.snakemake(plan)
    assert "convolutions measured; the network as it is:" in said
    # Of the last choice, what the first choice's network took.
    (whole,) = document(project, "first/latencies/local.json")["whole"]
    assert f"compressed: {whole['by_layers_ms']:.3f} ms by its layers" in said
    ranks = [layer["ranks"] for layer in document(project, "first/ranks.json")["layers"]]
    assert any(ranks)
    assert {rank % 8 for each in ranks for rank in each} == {0}
    # What was measured is remembered, for every method.
    latencies = project.folder / BUILD / "tucker/latencies/local.json"
    before = latencies.read_bytes()
    latencies.unlink()
    assert "] 0 convolutions measured" in project.snakemake(f"{BUILD}/tucker/latencies/local.json")
    assert json.loads(latencies.read_text())["grids"] == json.loads(before)["grids"]


def test_a_target_on_an_unknown_device_is_refused(with_method):
    project = with_method(ranks={"select": "budget", "target": {"latency_ms": {"lokal": 0.9}}})
    done = project.run("snakemake", "--cores", "1", f"{BUILD}/tucker/model.onnx", check=False)
    assert done.returncode
    assert "unknown device 'lokal'. Did you mean 'local'?" in done.stdout


@pytest.mark.slow
def test_stages_factor_the_same_layers_further(with_method):
    project = with_method(
        ranks=ALL | {"select": "ratio", "ratio": 3.0},
        schedule={"kind": "multi_stage", "stages": 2},
        finetune={"total_steps": 2},
    )
    taken = rounds_of(project)
    assert taken["1"] == taken["2"]
    assert set(taken["1"]) == set(TAKEN)
    first, second = (
        document(project, f"{at}/ranks.json")["layers"] for at in ("first", "rounds/2")
    )
    for before, after in zip(first, second, strict=True):
        assert after["ranks"] < before["ranks"]
        assert after["macs"][1] < before["macs"][1] < before["macs"][0]


@pytest.mark.slow
def test_a_control_is_trained_as_it_is(with_method):
    project = with_method(factorize={}, finetune={"steps": 2})
    assert rounds_of(project) == {"1": {}}
    assert document(project, "rounds/1/timing.json")["steps"] == 2
