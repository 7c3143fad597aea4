"""Test the loss of a network with a single layer decomposed."""

from functools import partial

import pytest
import torch
from toy import assert_same_weights, toy

from lowrank.data.datasets import open_dataset
from lowrank.evaluation import layer_losses
from lowrank.evaluation import network as evaluation
from lowrank.factorize import decompose, get_factorization
from lowrank.surgery.finding import find_layers
from lowrank.tasks import get_task
from lowrank.zoo import NetworkSpec

TASK = get_task("classification")
losses_by_layer = partial(layer_losses.losses_by_layer, TASK)
mean_loss = partial(evaluation.mean_loss, TASK)
SPEC = NetworkSpec("toy", (3, 32, 32), 10)


@pytest.fixture
def validation(tiny_folder):
    return open_dataset(tiny_folder).validation


def replacements(network, ranks):
    table = find_layers(network, SPEC.input_shape, "toy")
    for name, (factorization, chosen) in ranks.items():
        weight = network.get_submodule(name).weight.detach().numpy()
        bias = network.get_submodule(name).bias
        bias = None if bias is None else bias.detach().numpy()
        yield name, decompose(get_factorization(factorization), table[name], weight, bias, chosen)


def test_full_ranks_keep_the_loss_and_low_ranks_change_it(validation):
    network = toy(seed=3).eval()
    expected = mean_loss(network, validation, SPEC)
    full = {"conv2": ("tucker2", (8, 8)), "classifier": ("svd", (8,))}
    messages = []
    losses = losses_by_layer(
        network, SPEC, validation, replacements(network, full), say=messages.append
    )
    assert losses == pytest.approx({"conv2": expected, "classifier": expected}, rel=1e-4)
    assert len(messages) == 2
    low = {"conv2": ("tucker2", (1, 1)), "classifier": ("svd", (1,))}
    changed = losses_by_layer(
        network, SPEC, validation, replacements(network, low), say=messages.append
    )
    assert abs(changed["conv2"] - expected) > 1e-4
    assert abs(changed["classifier"] - expected) > 1e-4


def test_network_is_not_changed(validation):
    network = toy(seed=3).eval()
    low = {"conv1": ("tucker1", (1,)), "conv2": ("cp_tpm", (2,))}
    losses_by_layer(network, SPEC, validation, replacements(network, low), say=lambda line: None)
    assert_same_weights(network, toy(seed=3))


def test_mean_loss_is_the_cross_entropy(validation):
    network = toy(seed=3).eval()
    from lowrank.data.preprocessing import to_input

    with torch.inference_mode():
        logits = network(to_input(validation.images[validation.rows], SPEC))
    labels = torch.from_numpy(validation.labels[validation.rows])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert mean_loss(network, validation, SPEC) == pytest.approx(expected, rel=1e-5)
