"""Test how much outputs change when a layer is decomposed."""

from functools import partial

import pytest
import torch
from toy import assert_same_weights, toy

from lowrank.factorize import decompose, get_factorization
from lowrank.surgery import divergence as surgery
from lowrank.surgery.finding import find_layers
from lowrank.tasks import get_task

Divergence = partial(surgery.Divergence, difference=get_task("classification").divergence)


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


def test_divergence_is_the_mean_over_all_images(batches):
    network = toy(seed=3).eval()
    replacement = factors_of(network, "conv2", "tucker2", (2, 2))
    (divergence,) = Divergence(network, lambda: batches)([replacement])
    with torch.no_grad():
        before = network(torch.cat(batches)).double().softmax(1)
        kernel = torch.zeros_like(network.conv2.weight)
        first, core, last = map(torch.from_numpy, replacement[1].weights)
        kernel = torch.einsum("tr,rqij,qs->tsij", last[:, :, 0, 0], core, first[:, :, 0, 0])
        network.conv2.weight.copy_(kernel)
        after = network(torch.cat(batches)).double().softmax(1)
    expected = (before * (before / after).log()).sum(1).mean().item()
    assert divergence == pytest.approx(expected, rel=1e-3)
    assert divergence > 0


def test_divergence_is_zero_at_full_rank_and_grows_at_lower_ranks(batches):
    network = toy(seed=3).eval()
    replacements = [factors_of(network, "conv2", "tucker2", (rank, rank)) for rank in (8, 6, 3, 1)]
    divergences = Divergence(network, lambda: batches)(replacements)
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences == sorted(divergences)
    assert divergences[-1] > 1e-4


def test_network_is_not_changed(batches):
    network = toy(seed=3).eval()
    Divergence(network, lambda: batches)([factors_of(network, "conv1", "tucker1", (1,))])
    assert_same_weights(network, toy(seed=3))
    assert torch.is_grad_enabled()


def test_group_size_does_not_change_the_result(batches, monkeypatch):
    network = toy(seed=3).eval()
    replacements = [factors_of(network, "conv2", "tucker2", (rank, rank)) for rank in (1, 3, 6)]
    in_one_group = Divergence(network, lambda: batches)(replacements)
    monkeypatch.setattr("lowrank.surgery.divergence._GROUP_BYTES", 1)
    assert Divergence(network, lambda: batches)(replacements) == in_one_group
