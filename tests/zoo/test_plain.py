"""Test networks with computed weights, other precisions, wrappers and kept tensors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from toy import Toy, toy

import lowrank
from lowrank.config.network_source import NetworkSource
from lowrank.errors import UserError
from lowrank.surgery.finding import find_layers
from lowrank.zoo.creation import create
from lowrank.zoo.plain import can_be_folded, copied, fold, unwrapped
from lowrank.zoo.weight_files import load_trained, read_weights

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RATIO = {"select": "ratio", "ratio": 1.5, "negligible": 0}


def old_weight_norm():
    network = toy(0)
    weight_norm(network.conv2)
    return network


def new_weight_norm():
    network = toy(0)
    parametrizations.weight_norm(network.conv2)
    parametrizations.weight_norm(network.classifier)
    return network


def old_spectral_norm():
    network = toy(0)
    spectral_norm(network.conv2)
    return network


def pruned():
    network = toy(0)
    prune.l1_unstructured(network.conv2, "weight", 0.5)
    prune.random_unstructured(network.conv2, "weight", 0.2)
    prune.l1_unstructured(network.classifier, "bias", 0.3)
    return network


def doubled():
    return toy(0).double()


def halved():
    return toy(0).bfloat16()


def parallel():
    return nn.DataParallel(toy(0))


def compiled():
    # The wrapper is the same for every backend, and this one generates no C++ code.
    return torch.compile(nn.DataParallel(toy(0)), backend="eager")


def scripted():
    return torch.jit.trace(toy(0).eval(), torch.zeros(1, 3, 32, 32))


def keeping_outputs():
    """Return a network that keeps outputs with gradients, in an attribute and in a list."""
    network = toy(0)
    network.last, network.all = network(IMAGES), [network(IMAGES).sum(), 3]
    return network


COMPUTED = [old_weight_norm, new_weight_norm, old_spectral_norm, pruned]


def logits_of(network):
    with torch.no_grad():
        return network.eval()(IMAGES)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", COMPUTED)
def test_computed_weights_are_folded(make):
    network = make()
    expected = logits_of(network)
    assert can_be_folded(network)
    assert fold(network)
    assert not can_be_folded(network)
    assert network.state_dict().keys() == toy().state_dict().keys()
    torch.testing.assert_close(logits_of(network), expected)
    assert fold(network) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", [*COMPUTED, keeping_outputs, parallel, compiled])
def test_compress_does_not_change_the_network(make):
    network = make()
    before, expected = copy.deepcopy(dict(network.state_dict())), logits_of(network)
    small = lowrank.compress(network, (3, 32, 32), factorize={"conv": "tucker2"}, ranks=RATIO)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(logits_of(network), expected)
    assert isinstance(small.network, Toy)
    assert isinstance(small.network.conv2, nn.Sequential)
    assert small.network(IMAGES).shape == (4, 10)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", COMPUTED)
def test_full_rank_gives_the_same_logits(make):
    network = make()
    full = {"select": "fixed", "table": {"conv2": [8, 8]}}
    small = lowrank.compress(network, (3, 32, 32), factorize={"conv": "tucker2"}, ranks=full)
    torch.testing.assert_close(logits_of(small.network), logits_of(network), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [doubled, halved, parallel, compiled, pruned, new_weight_norm])
def test_factory_can_return_such_networks(make):
    source = NetworkSource(factory=f"{__name__}:{make.__name__}", input_shape=(3, 32, 32))
    spec, network = create(source)
    assert spec.num_classes == 10
    assert isinstance(network, Toy)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert len(find_layers(network, (3, 32, 32), "toy").layers) == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_rejected():
    source = NetworkSource(factory=f"{__name__}:scripted", input_shape=(3, 32, 32))
    with pytest.raises(UserError, match=r":scripted': it is TorchScript, and its layers"):
        create(source)
    with pytest.raises(UserError, match=r"it is TorchScript, and its layers cannot be replaced"):
        lowrank.compress(scripted(), (3, 32, 32))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("stored", ["computed", "folded"])
@pytest.mark.parametrize("make", COMPUTED)
def test_load_weights_of_a_network_with_computed_weights(tmp_path, make, stored):
    trained = make()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    expected = logits_of(trained)
    content = copied(trained)
    if stored == "folded":
        fold(content)
    torch.save(content.state_dict(), tmp_path / "a.pth")
    messages, network = [], make()
    load_trained(network, read_weights(tmp_path / "a.pth"), source="a.pth", say=messages.append)
    torch.testing.assert_close(logits_of(network), expected)
    assert "into weights of layers: conv2.weight" in messages[-1]


def test_copy_has_the_values_of_kept_tensors():
    network = keeping_outputs()
    with pytest.raises(RuntimeError):
        copy.deepcopy(network)
    duplicate = copied(network)
    assert torch.equal(duplicate.last, network.last)
    assert not duplicate.last.requires_grad
    assert torch.equal(duplicate.all[0], network.all[0])
    duplicate.conv1.weight.data.zero_()
    assert network.conv1.weight.abs().sum() > 0


def test_nested_wrappers_are_removed():
    network = toy()
    assert unwrapped(torch.compile(nn.DataParallel(torch.compile(network)))) is network
