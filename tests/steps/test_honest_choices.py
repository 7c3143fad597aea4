"""A target of `accuracy_drop` for weights that were trained on the images held out for choices."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy import toy

import lowrank
from lowrank.cli import main
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.data.sources import store_dataset
from lowrank.evaluation.exported import ExportedNetworks
from lowrank.evaluation.gap import gap_warning
from lowrank.files import read_json, write_json
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.bisection import Found, cheapest
from lowrank.surgery.states import State, write_state
from lowrank.tasks import get_task
from lowrank.zoo.registry import NetworkSpec

SPEC = NetworkSpec("toy", (3, 32, 32), 10)
TASK = get_task("classification")
IN_RUNTIME = ExportedNetworks(TASK, SPEC, threads=1)
ACCURACY_DROP = 20.0
# Higher ranks would save nothing, so the classifier would stay dense.
RANKS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Store a dataset of overlapping classes. A network can memorize it, but not generalize."""
    random = np.random.default_rng(0)
    folder, means = tmp_path_factory.mktemp("honest") / "overlapping", random.normal(0, 1, (10, 48))
    arrays = {}
    for split, count in (("train", 120), ("test", 1200)):
        labels = random.integers(0, 10, count)
        coarse = 128 + 25 * (means[labels] + random.normal(0, 1.0, (count, 48)))
        coarse = coarse.reshape(count, 4, 4, 3).repeat(8, 1).repeat(8, 2)
        arrays[f"{split}_images"] = coarse.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    store_dataset(folder, "overlapping", [str(n) for n in range(10)], arrays)
    return folder


@pytest.fixture(scope="module")
def network(dataset):
    """Train a network on all training images, including those held out for choices."""
    network, data = toy(seed=1), open_dataset(dataset)
    batches = [EvaluationBatches(split, SPEC)[0] for split in (data.train, data.validation)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def trials(network, dataset):
    """Export the network with a classifier of each rank, and the original under None."""
    files = {None: dataset.parent / "original.onnx"}
    export_onnx(network, SPEC, files[None])
    for rank in RANKS:
        ranks = {"select": "fixed", "table": {"classifier": [rank]}}
        small = lowrank.compress(network, (3, 32, 32), factorize={"linear": "svd"}, ranks=ranks)
        files[rank] = dataset.parent / f"rank{rank}.onnx"
        small.export(files[rank])
    write_state(dataset.parent / "original.safetensors", State(SPEC, network, {}))
    return files


def lowrank_step(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def split(dataset, **validation):
    output = dataset.parent / "splits" / validation["from"]
    lowrank_step("splits", "--model", "toy", "--dataset", dataset, "--validation",
                 json.dumps(validation), "--output", output)  # fmt: skip
    return output


@pytest.fixture(scope="module")
def splits(dataset):
    return split(dataset, **{"from": "test", "images": 600})


def judge(rank, trials, dataset, splits):
    folder = dataset.parent
    write_json(folder / "aim.json", {"share": rank / 10})
    lowrank_step("judge_trial", "--original", trials[None], "--trial", trials[rank],
                 "--network", "toy", "--state", folder / "original.safetensors",
                 "--dataset", dataset, "--splits", splits, "--aim", folder / "aim.json",
                 "--threads", 1, "--output", folder / "found.json")  # fmt: skip
    return Found.from_json(read_json(folder / "found.json"))


def report(rank, trials, dataset, splits):
    images = open_dataset(dataset, splits).test
    before, after = (IN_RUNTIME.measure(trials[r], images) for r in (None, rank))
    return Found(rank / 10, *TASK.drop(before, after))


def test_the_gap_between_training_and_test_images_causes_a_warning(trials, dataset, splits):
    warnings = {}
    for folder in (split(dataset, **{"from": "train", "images": 60}), splits):
        data = open_dataset(dataset, folder)
        measured = {
            name: IN_RUNTIME.measure(trials[None], getattr(data, name))
            for name in ("validation", "test")
        }
        warnings[data.validation_from] = gap_warning(
            TASK.metric,
            measured,
            validation=len(data.validation),
            test=len(data.test),
            validation_from=data.validation_from,
        )
    assert "validation accuracy is 100.00 % on 60 images" in warnings["train"]
    assert warnings["test"] == ""


def test_the_result_of_a_search_meets_its_target_on_the_reported_images(trials, dataset, splits):
    measured = {rank: judge(rank, trials, dataset, splits) for rank in RANKS}
    truth = {rank: report(rank, trials, dataset, splits) for rank in RANKS}
    for rank in RANKS:
        error = np.hypot(measured[rank].standard_error, truth[rank].standard_error)
        assert abs(measured[rank].drop - truth[rank].drop) <= 3 * error
    chosen = RANKS[cheapest(list(measured.values()), accuracy_drop=ACCURACY_DROP, confidence=1.0)]
    assert chosen == 4
    assert truth[chosen].drop <= ACCURACY_DROP + 3 * truth[chosen].standard_error
    # The next cheaper network would not meet the target.
    assert truth[3].drop > ACCURACY_DROP
