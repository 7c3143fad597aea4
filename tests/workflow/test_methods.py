"""Methods with several rounds, run on a small network."""

import json

import onnx
import pytest
from projects import BUILD, Project

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Plan
from lowrank.core.stored import read_header
from lowrank.files import read_json
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.removed_channels import network_macs
from lowrank.zoo import create_network
from lowrank.zoo.registry import NetworkSpec

# Three of the twenty layers: the first convolution, one in the middle and the linear layer.
LAYERS = ["conv", "blocks.3.conv2", "classifier"]
# Without this setting, the small classifier would stay dense.
ALL = {"negligible": 0}
MILD = ALL | {"select": "ratio", "ratio": 1.5}


@pytest.fixture
def with_method(project: Project):
    def change(**method) -> Project:
        factorize = {"first_conv": "channel_svd", "conv": "cp_tpm", "linear": "svd"}
        project.change_params(
            methods={
                "tucker": {
                    "factorize": factorize | {"include": LAYERS},
                    "ranks": MILD,
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
    """Return the factored layers after each round, with their factorizations."""
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
def test_a_hybrid_schedule_with_ranks_by_sensitivity(with_method):
    project = with_method(
        ranks=ALL | {"select": "sensitivity", "ratio": 1.5, "trial_ratio": 2.0, "images": 10},
        schedule={"kind": "hybrid", "order": ["blocks.3.conv2"]},
        finetune={"total_steps": 4, "last_share": 0.5},
    )
    factored = list(rounds_of(project).values())
    assert factored[0] == {"blocks.3.conv2": "cp_tpm"}
    # The first convolution is next. It may stay dense, because little can be saved in it.
    assert factored[1].items() >= factored[0].items()
    assert document(project, "rounds/2/ranks.json")["layers"][0]["name"] == "conv"
    assert factored[2] == factored[1] | {"classifier": "svd"}
    plan = document(project, "first/ranks.json")
    assert set(plan["sensitivity"]) == set(plan["shares"]) == set(LAYERS)
    assert plan["sensitivity"]["classifier"] == 1
    assert plan["sensitivity"]["conv"] + plan["sensitivity"]["blocks.3.conv2"] == pytest.approx(1)
    later = document(project, "rounds/3/ranks.json")
    assert later["layers"][0]["chosen"] == plan["shares"]["classifier"]["ranks"]
    assert "sensitivity" not in later
    assert [document(project, f"rounds/{n}/timing.json")["steps"] for n in (1, 2, 3)] == [1, 1, 2]
    # The test images are used once, in the last round.
    measured = [document(project, f"rounds/{n}/metrics.json")["accuracy"] for n in (1, 3)]
    assert set(measured[0]["finetuned"]) == {"validation"}
    assert set(measured[1]["finetuned"]) == {"validation", "test"}


@pytest.mark.slow
def test_a_target_is_met_with_an_iterative_schedule(with_method):
    """The ranks of all layers are chosen before the first round, from the moments of all layers."""
    factorize = {"conv": "tucker2", "linear": "svd", "include": LAYERS[1:]}
    project = with_method(
        factorize=factorize | {"norm": "activation", "images": 20, "alternatives": ["spatial_svd"]},
        ranks=ALL | {"select": "budget", "target": {"macs": 0.96}, "images": 10},
        schedule={"kind": "iterative"},
        finetune={"total_steps": 2},
    )
    factored = list(rounds_of(project).values())
    assert set(factored[-1]) <= set(LAYERS[1:])
    plan = document(project, "first/ranks.json")
    assert set(plan["shares"]) == set(LAYERS[1:])
    table = LayerTable.from_json(read_json(project.folder / "data/networks/resnet20.json"))
    total = sum(layer.dense_macs for layer in table.layers)
    planned = [
        document(project, f"{at}/ranks.json")["layers"][0]["macs"] for at in ("first", "rounds/2")
    ]
    assert 0.94 <= 1 - sum(before - after for before, after in planned) / total <= 0.96
    assert not project.snakemake("-n", f"{BUILD}/tucker/model.onnx").count("rule ")


@pytest.mark.slow
def test_a_target_of_milliseconds_is_measured_on_this_machine(with_method):
    project = with_method(
        factorize={"conv": "tucker2"},
        ranks=ALL
        | {"select": "budget", "target": {"latency_ms": {"local": 0.9}}, "images": 10}
        | {"multiple_of": 8},
    )
    plan = f"{BUILD}/tucker/first/ranks.json"
    output = project.snakemake(plan)
    assert "convolutions measured; the original takes" in output
    # The correction comes from the network of the draft.
    (piece,) = document(project, "first/latencies/local.json")["whole"]
    assert f"compressed: {piece['by_layers_ms']:.3f} ms by its layers" in output
    ranks = [layer["ranks"] for layer in document(project, "first/ranks.json")["layers"]]
    assert any(ranks)
    assert {rank % 8 for layer_ranks in ranks for rank in layer_ranks} == {0}
    # Measurements are cached for all methods.
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
def test_each_stage_decomposes_the_same_layers_at_lower_ranks(with_method):
    project = with_method(
        ranks=ALL | {"select": "ratio", "ratio": 3.0},
        schedule={"kind": "multi_stage", "stages": 2},
        finetune={"total_steps": 2},
    )
    factored = rounds_of(project)
    assert factored["1"] == factored["2"]
    assert set(factored["1"]) == set(LAYERS)
    first, second = (
        document(project, f"{at}/ranks.json")["layers"] for at in ("first", "rounds/2")
    )
    for before, after in zip(first, second, strict=True):
        assert after["ranks"] < before["ranks"]
        assert after["macs"][1] < before["macs"][1] < before["macs"][0]


@pytest.mark.slow
def test_a_control_is_trained_without_factorizations(with_method):
    project = with_method(factorize={}, finetune={"steps": 2})
    assert rounds_of(project) == {"1": {}}
    assert document(project, "rounds/1/timing.json")["steps"] == 2


@pytest.mark.slow
def test_removed_channels_are_gone_from_the_exported_file(with_method):
    """The file has the nodes of the original, with fewer channels inside of the blocks."""
    project = with_method(
        factorize={"conv": "remove_channels", "norm": "activation", "images": 20}
        | {"sequential": True},
        ranks=ALL | {"select": "budget", "target": {"macs": 0.8}, "images": 10, "multiple_of": 4},
        finetune={"steps": 2},
        quantize="int8",
    )
    project.snakemake(f"{BUILD}/tucker/model.onnx", f"{BUILD}/tucker/int8")
    spec = NetworkSpec("resnet20", (3, 32, 32), 10)
    export_onnx(create_network("resnet20"), spec, project.folder / "original.onnx")
    original = onnx.load(project.folder / "original.onnx").graph
    compressed = onnx.load(project.folder / BUILD / "tucker/model.onnx").graph
    assert [node.op_type for node in compressed.node] == [node.op_type for node in original.node]
    plan = Plan.from_json(document(project, "first/ranks.json"))
    table = LayerTable.from_json(read_json(project.folder / "data/networks/resnet20.json"))
    before, after = network_macs(table, plan.layers)
    assert 0.75 < after / before <= 0.8
    shapes = {tuple(tensor.dims) for tensor in compressed.initializer}
    chosen = [entry.ranks[0] for entry in plan.layers if not entry.is_dense]
    assert chosen
    assert any(shape[1:2] == (chosen[0],) for shape in shapes)
