"""Resources of jobs on this machine and on a cluster."""

from pathlib import Path

import pytest
import yaml

from lowrank.errors import UserError
from lowrank.graph.pipeline import Graph

ROOT = Path(__file__).parents[2]
DOCUMENT = yaml.safe_load((ROOT / "params.yaml").read_text())


class Wildcards(dict):
    """Wildcards like those of Snakemake, with attributes and `keys`."""

    __getattr__ = dict.__getitem__


WILDCARDS = Wildcards(model="resnet20", method="tucker", device="local", round="1")
NODE = {"kind": "slurm", "constraint": "milan", "threads": [2, 4]}


@pytest.fixture
def graph_of(tmp_path, monkeypatch):
    """Return a function that creates the graph of params.yaml with other devices."""
    # A separate folder, because the project's folder may contain notes of earlier code.
    monkeypatch.setattr("lowrank.graph.layer_tables.TABLE_CODE", tmp_path)

    def create(on_cluster=True, by_time=True, **devices):
        document = DOCUMENT | {"benchmark": devices or {"local": {"kind": "local"}}}
        document["matrix"] = document["matrix"] | {"devices": list(document["benchmark"])}
        document["quantize"] = {"by_time": by_time}
        return Graph.from_document(document, tables=ROOT / "data/networks", on_cluster=on_cluster)

    return create


def test_measurements_here_use_all_cores(graph_of):
    resources = graph_of(on_cluster=False).resources
    assert resources.measuring_threads(8)(WILDCARDS) == 8
    assert resources.quantizing_threads(8) == 8
    assert resources.training_retries == 0


def test_no_job_of_a_cluster_asks_for_the_cores_of_the_login_node(graph_of):
    resources = graph_of(local=NODE).resources
    assert resources.measuring_threads(128)(WILDCARDS) == 4
    assert resources.quantizing_threads(128) == 2
    assert resources.training_retries == 2


def test_measurements_get_a_whole_node_of_their_kind(graph_of):
    resources = graph_of(local=NODE).resources
    names = ("constraint", "slurm_partition", "slurm_extra")
    values = {name: resources.of_device(name)(WILDCARDS) for name in names}
    assert values == {"constraint": "milan", "slurm_partition": None, "slurm_extra": "--exclusive"}
    assert resources.of_timed_devices("constraint")(WILDCARDS) == "milan"


def test_measurements_over_ssh_need_no_node_for_themselves(graph_of):
    resources = graph_of(local={"kind": "ssh", "host": "board"}).resources
    assert resources.of_device("slurm_extra")(WILDCARDS) is None


def test_int8_files_cannot_be_timed_on_different_nodes_in_one_job(graph_of):
    devices = {"local": NODE, "genoa": NODE | {"constraint": "genoa"}}
    with pytest.raises(UserError, match=r"local, genoa are different nodes.*by_time: false"):
        graph_of(**devices).resources.of_timed_devices("constraint")(WILDCARDS)
    untimed = graph_of(by_time=False, **devices).resources
    assert untimed.of_timed_devices("constraint")(WILDCARDS) is None


def test_int8_files_are_timed_on_a_node_and_behind_ssh_in_one_job(graph_of):
    devices = {"board": {"kind": "ssh", "host": "board"}, "local": NODE}
    assert graph_of(**devices).resources.of_timed_devices("constraint")(WILDCARDS) == "milan"


def test_repeated_jobs_get_more(graph_of):
    graph = graph_of()
    for amount in (
        graph.resources.memory("evaluating"),
        graph.resources.minutes("evaluating", lambda _: 2),
        graph.resources.minutes("analyzing", 2),
        graph.resources.training_memory(graph.compress.finetune),
        graph.resources.training_minutes(graph.compress.finetune),
    ):
        assert amount(WILDCARDS, 2) == 2 * amount(WILDCARDS, 1) > 0


def test_sequential_decomposition_gets_the_memory_of_a_pass_over_images(graph_of, monkeypatch):
    graph = graph_of()
    alone = graph.resources.decomposing_memory(WILDCARDS, 1)
    monkeypatch.setattr(graph, "is_sequential", lambda _: True)
    in_order = graph.resources.decomposing_memory(WILDCARDS, 1)
    assert in_order == graph.resources.memory("analyzing")(WILDCARDS, 1) > alone


def test_sequential_decomposition_gets_the_time_of_its_passes(graph_of, monkeypatch):
    graph = graph_of()
    resources = graph.resources
    layer, layers = (
        resources.decomposing_minutes(WILDCARDS, 1),
        resources.round_minutes(WILDCARDS, 1),
    )
    monkeypatch.setattr(graph, "is_sequential", lambda _: True)
    # 100,000 images of ResNet-20, 41 million MACs each, through two networks on two threads.
    monkeypatch.setattr(graph.compress, "images", lambda _: 100_000)
    passes = resources.decomposing_minutes(WILDCARDS, 1) - layer
    assert passes == 14
    assert resources.decomposing_minutes(WILDCARDS, 2) == 2 * (layer + passes)
    in_order = resources.round_minutes(WILDCARDS, 1)
    assert in_order - layers == passes * len(graph.layers(WILDCARDS))


def test_only_training_that_needs_a_gpu_asks_for_one(graph_of):
    graph = graph_of()
    settings = graph.compress.finetune(WILDCARDS)
    gpus = {
        device: graph.resources.training_gpu(
            lambda _, device=device: settings.model_copy(update={"device": device})
        )(WILDCARDS)
        for device in ("auto", "cpu", "cuda")
    }
    assert gpus == {"auto": None, "cpu": None, "cuda": 1}


@pytest.mark.parametrize(("device", "gpus"), [("auto", None), ("cpu", None), ("cuda", 1)])
def test_a_measuring_job_asks_for_a_gpu_only_if_its_device_is_one(
    graph_of, device: str, gpus: int | None
):
    assert graph_of().resources.measuring_gpu(lambda _: device)(WILDCARDS) == gpus
