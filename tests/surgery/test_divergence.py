"""How far answers move when a layer is decomposed."""

import pytest
import torch
from toy import assert_same_weights, toy

from lowrank.factorize import decompose, get_factorization
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.finding import find_layers


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 32, 32, generator=generator) for size in (6, 3)]


def factors_of(network, name, factorization, ranks):
    layer = find_layers(network, (3, 32, 32), "toy")[name]
    module = network.get_submodule(name)
    bias = None if module.bias is None else module.bias.detach().numpy()
    weight = module.weight.detach().numpy()
    return name, decompose(get_factorization(factorization), layer, weight, bias, ranks)


def test_it_is_the_mean_over_all_images(batches):
    network = toy(seed=3).eval()
    replacement = factors_of(network, "conv2", "tucker2", (2, 2))
    (found,) = Divergence(network, lambda: batches)([replacement])
    with torch.no_grad():
        before = network(torch.cat(batches)).double().softmax(1)
        kernel = torch.zeros_like(network.conv2.weight)
        first, core, last = (torch.from_numpy(each) for each in replacement[1].weights)
        kernel = torch.einsum("tr,rqij,qs->tsij", last[:, :, 0, 0], core, first[:, :, 0, 0])
        network.conv2.weight.copy_(kernel)
        after = network(torch.cat(batches)).double().softmax(1)
    expected = (before * (before / after).log()).sum(1).mean().item()
    assert found == pytest.approx(expected, rel=1e-3)
    assert found > 0


def test_full_ranks_move_nothing_and_low_ranks_more_than_high_ones(batches):
    network = toy(seed=3).eval()
    measured = Divergence(network, lambda: batches)
    found = measured(factors_of(network, "conv2", "tucker2", (rank, rank)) for rank in (8, 6, 3, 1))
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found == sorted(found)
    assert found[-1] > 1e-4


def test_the_network_is_left_as_it_was(batches):
    network = toy(seed=3).eval()
    measured = Divergence(network, lambda: batches)
    measured([factors_of(network, "conv1", "tucker1", (1,))])
    assert_same_weights(network, toy(seed=3))
    assert torch.is_grad_enabled()


def test_replacements_kept_a_few_at_a_time_lose_what_all_at_once_do(batches, monkeypatch):
    network = toy(seed=3).eval()
    replacements = [factors_of(network, "conv2", "tucker2", (rank, rank)) for rank in (1, 3, 6)]
    whole = Divergence(network, lambda: batches)(replacements)
    monkeypatch.setattr("lowrank.surgery.divergence._KEPT_BYTES", 1)
    assert Divergence(network, lambda: batches)(replacements) == whole
