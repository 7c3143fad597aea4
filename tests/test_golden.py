"""Known values on the shipped checkpoints: a change of the numerics shows here.

After an intended change, write them again with `python tests/test_golden.py`, and say why in the
commit.
"""

import json
from pathlib import Path

import pytest

from lowrank.core.layers import LayerTable
from lowrank.core.rounds import assign_factorizations
from lowrank.factorize import decompose, get_factorization
from lowrank.files import read_json
from lowrank.ranks import choose_ranks
from lowrank.zoo import create_network
from lowrank.zoo.weight_files import load_weights, read_weights

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/shipped_checkpoints.json"
# Kim et al. 2016: EVBMF on the weights alone.
TUCKER = {"first_conv": "tucker1", "conv": "tucker2", "pointwise_conv": "svd", "linear": "svd"}
SPATIAL = {"conv": "spatial_svd"}


def kernels(model):
    """The layers of a shipped network with their kernels, in network order."""
    network = create_network(model)
    path = ROOT / f"data/checkpoints/{model}.safetensors"
    load_weights(network, read_weights(path), source=str(path))
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


@pytest.mark.parametrize("model", ["vgg16", "resnet20"])
def test_evbmf_finds_the_known_ranks(model):
    assert evbmf_ranks(model) == read_json(GOLDEN)[model]["evbmf_ranks"]


@pytest.mark.parametrize("model", ["vgg16", "resnet20"])
def test_spatial_svd_leaves_the_known_errors(model):
    known = read_json(GOLDEN)[model]["spatial_svd_errors"]
    assert spatial_errors(model) == pytest.approx(known, abs=2e-5)


if __name__ == "__main__":
    document = {
        model: {"evbmf_ranks": evbmf_ranks(model), "spatial_svd_errors": spatial_errors(model)}
        for model in ("vgg16", "resnet20")
    }
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")
