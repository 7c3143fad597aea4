"""Test the search for layers that cannot be replaced without changing the network's outputs."""

import mynet
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowrank.errors import UserError
from lowrank.surgery.equality import layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network, network_spec

SHAPE = (3, 16, 16)


def must_stay(network, images=None):
    torch.manual_seed(1)
    images = torch.randn(4, *SHAPE) if images is None else images
    return layers_that_must_stay(
        network, find_layers(network, tuple(images.shape[1:]), "net"), images
    )


class Typed(nn.Module):
    """Network that applies an activation only after modules of type convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = torch.relu(x)
        return self.head(x.mean((2, 3)))


class Bright(nn.Module):
    """Network that reads the weight of a layer, but not for an image of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        if x.abs().sum() > 0:
            y = y * self.second.weight.norm()
        return y.mean((2, 3))


class Counting(nn.Module):
    """Network whose outputs change only when both of its convolutions are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        convolutions = [child for child in self.children() if isinstance(child, nn.Conv2d)]
        return self.second(self.first(x)).mean((2, 3)) * (1 + bool(convolutions))


class CountingCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 8, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x).mean((2, 3)) * self.calls


def test_layer_whose_type_matters_stays():
    network = Typed()
    before = dict(network.named_modules())
    reasons = must_stay(network)
    assert set(reasons) == {"layers.0", "layers.2"}
    assert all("change the network's outputs by" in reason for reason in reasons.values())
    assert all("depends on the type" in reason for reason in reasons.values())
    assert dict(network.named_modules()) == before
    assert network.training


def test_layer_whose_weight_is_read_only_for_real_images_stays():
    network = Bright()
    assert find_layers(network, SHAPE, "net")["second"].not_factored is None
    reasons = must_stay(network)
    assert set(reasons) == {"second"}
    assert "the network fails: AttributeError" in reasons["second"]


class Undefined(Bright):
    """Network with some outputs that are NaN, as a square root of a negative number is."""

    def forward(self, x):
        outputs = super().forward(x)
        return torch.cat([outputs, torch.full_like(outputs, torch.nan)], 1)


def test_undefined_outputs_do_not_hide_a_change_of_the_others():
    assert must_stay(Undefined()).keys() == must_stay(Bright()).keys() == {"second"}


def test_one_of_two_interdependent_layers_stays():
    assert len(must_stay(Counting())) == 1


def test_nondeterministic_network_is_rejected():
    with pytest.raises(UserError, match="'net' returns different outputs for the same images"):
        must_stay(CountingCalls())


def test_random_numbers_in_evaluation_mode_are_accepted():
    class Noisy(CountingCalls):
        def forward(self, x):
            y = self.layer(x).mean((2, 3))
            return y + torch.randn_like(y)

    state = torch.random.get_rng_state()
    network = Noisy()
    assert must_stay(network) == {}
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_of_plain_networks_do_not_change(dtype):
    torch.manual_seed(0)
    network = mynet.build().to(dtype)
    assert must_stay(network, torch.randn(2, 3, 32, 32, dtype=dtype)) == {}


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "squeezenet"])
def test_outputs_of_shipped_networks_do_not_change(name):
    network, spec = create_network(name), network_spec(name)
    assert must_stay(network, torch.randn(2, *spec.input_shape)) == {}


def test_every_kind_of_layer_is_replaced_losslessly(monkeypatch):
    """Flattened maps, groups, dilation and 1 x 1 kernels: no layer is skipped."""
    from lowrank.surgery import equality

    replaced = []
    replace_losslessly = equality._replace_losslessly

    def recorded(network, layer):
        replace_losslessly(network, layer)
        replaced.append(layer.name)
        assert isinstance(network.get_submodule(layer.name), nn.Sequential)

    monkeypatch.setattr(equality, "_replace_losslessly", recorded)
    network = mynet.build()
    assert must_stay(network, torch.randn(2, 3, 32, 32)) == {}
    assert replaced == [
        "stem", "block.conv1", "block.conv2", "left", "right", "hidden", "classifier"
    ]  # fmt: skip


def test_layers_with_computed_weights_are_skipped():
    network = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Flatten())
    assert must_stay(network) == {}
