"""Known values on the shipped checkpoints: a change of the numerics shows here.

After an intended change, write them again with `python tests/test_golden.py`, and say why in the
commit.
"""

import json
import os
from pathlib import Path

import pytest
import torch

import lowrank
from lowrank.core.layers import LayerTable
from lowrank.core.rounds import assign_factorizations
from lowrank.data.cifar10 import CIFAR10_CLASSES, obtain_cifar10
from lowrank.data.datasets import open_dataset
from lowrank.data.sources import store_dataset
from lowrank.errors import UserError
from lowrank.evaluation.network import inputs_of, value_of
from lowrank.factorize import decompose, get_factorization
from lowrank.files import read_json
from lowrank.ranks.select import choose_ranks
from lowrank.tasks import get_task
from lowrank.temporary import temporary_folder
from lowrank.zoo import create_network, network_spec
from lowrank.zoo.weight_files import load_weights, read_weights

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/shipped_checkpoints.json"
MODELS = ("vgg16", "resnet20", "resnet56")
# Kim et al. 2016: EVBMF on the weights alone.
TUCKER = {"first_conv": "tucker1", "conv": "tucker2", "pointwise_conv": "svd", "linear": "svd"}
SPATIAL = {"conv": "spatial_svd"}


# The ranks of `tucker` in params.yaml for VGG-16, and the images on which its norm is measured.
VGG16_RANKS = {"select": "vbmf", "weaken": 0.05, "multiple_of": 16, "rounding": "up"}
CALIBRATION_IMAGES, TEST_IMAGES = 256, 1000


def shipped(model):
    """A network with its shipped weights."""
    network = create_network(model)
    path = ROOT / f"data/checkpoints/{model}.safetensors"
    load_weights(network, read_weights(path), source=str(path))
    return network.eval()


def cifar10(folder):
    """CIFAR-10: the stored dataset of this checkout, or a new one in `folder`.

    The download is kept in `data/`, where the step `dataset` looks for it too.
    """
    stored = ROOT / "data/datasets/cifar10"
    if not (stored / "dataset.json").exists():
        stored = Path(folder) / "cifar10"
        store_dataset(stored, "cifar10", CIFAR10_CLASSES, obtain_cifar10(ROOT / "data", print))
    return open_dataset(stored)


def accuracy(network, data, model):
    """Top-1 accuracy on 1,000 test images, in percent."""
    return value_of(
        get_task("classification"), network, data.test.sample(TEST_IMAGES), network_spec(model)
    )


def decomposed_accuracy(data, model="vgg16"):
    """The accuracy after decomposition by `tucker`, without training, in percent."""
    network, spec = shipped(model), network_spec(model)
    calibration = data.train.sample(CALIBRATION_IMAGES)
    images = [batch for batch, _ in inputs_of(network, calibration, spec)]
    small = lowrank.compress(network, spec.input_shape, ranks=VGG16_RANKS, images=images)
    return accuracy(small.network, data, model)


def kernels(model):
    """The layers of a shipped network with their kernels, in network order."""
    network = shipped(model)
    table = LayerTable.from_json(read_json(ROOT / f"data/networks/{model}.json"))
    for layer in table.layers:
        yield table, layer, network.get_submodule(layer.name).weight.detach().numpy()


def evbmf_ranks(model):
    """The ranks that EVBMF finds in each layer; empty for a layer that stays dense."""
    ranks = {}
    for table, layer, weight in kernels(model):
        factorization = assign_factorizations(table, TUCKER).get(layer.name)
        if factorization:
            planned = choose_ranks(layer, weight, factorization, {"select": "vbmf"})
            ranks[layer.name] = list(planned.chosen)
    return ranks


def spatial_errors(model):
    """The relative error of spatial SVD at a quarter of the MACs, in each layer."""
    errors = {}
    for table, layer, weight in kernels(model):
        factorization = assign_factorizations(table, SPATIAL).get(layer.name)
        if factorization:
            planned = choose_ranks(layer, weight, factorization, {"select": "ratio", "ratio": 4})
            method = get_factorization(factorization)
            result = decompose(method, layer, weight, None, planned.ranks)
            errors[layer.name] = round(result.relative_error, 5)
    return errors


@pytest.mark.seconds
@pytest.mark.parametrize("model", MODELS)
def test_evbmf_finds_the_known_ranks(model):
    assert evbmf_ranks(model) == read_json(GOLDEN)[model]["evbmf_ranks"]


@pytest.mark.seconds
@pytest.mark.parametrize("model", MODELS)
def test_spatial_svd_leaves_the_known_errors(model):
    known = read_json(GOLDEN)[model]["spatial_svd_errors"]
    assert spatial_errors(model) == pytest.approx(known, abs=2e-5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    try:
        return cifar10(tmp_path_factory.mktemp("datasets"))
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"CIFAR-10 is not available: {error}")


@pytest.fixture
def all_cores(restored_torch):
    torch.set_num_threads(os.cpu_count() or 1)


# Two images of 1,000: sums in another order may move an image that lies on a border.
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_originals_have_the_known_accuracy(model, images, all_cores):
    known = read_json(GOLDEN)[model]["accuracy"]
    assert accuracy(shipped(model), images, model) == pytest.approx(known, abs=0.21)


@pytest.mark.slow
def test_vgg16_has_the_known_accuracy_after_decomposition(images, all_cores):
    known = read_json(GOLDEN)["vgg16"]["decomposed_accuracy"]
    assert decomposed_accuracy(images) == pytest.approx(known, abs=0.51)


if __name__ == "__main__":
    with temporary_folder() as folder:
        images = cifar10(folder)
        document = {
            model: {
                "evbmf_ranks": evbmf_ranks(model),
                "spatial_svd_errors": spatial_errors(model),
                "accuracy": accuracy(shipped(model), images, model),
            }
            for model in MODELS
        }
        document["vgg16"]["decomposed_accuracy"] = decomposed_accuracy(images)
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")
