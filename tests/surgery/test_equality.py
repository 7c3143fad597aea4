"""Layers that cannot be replaced without changing what the network computes."""

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
    """Activates what comes from a convolution, and nothing else."""

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
    """Reads a layer's weight for bright images alone, which one of zeros does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        if x.abs().sum() > 0:
            y = y * self.second.weight.norm()
        return y.mean((2, 3))


class Counting(nn.Module):
    """Scales by the number of its convolutions, so that no single layer is to blame alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        convolutions = [each for each in self.children() if isinstance(each, nn.Conv2d)]
        return self.second(self.first(x)).mean((2, 3)) * (1 + bool(convolutions))


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 8, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x).mean((2, 3)) * self.calls


def test_a_layer_whose_type_decides_stays():
    network = Typed()
    before = dict(network.named_modules())
    told = must_stay(network)
    assert set(told) == {"layers.0", "layers.2"}
    assert all("change the network's outputs by" in reason for reason in told.values())
    assert all("looks at the layer's type" in reason for reason in told.values())
    assert dict(network.named_modules()) == before
    assert network.training


def test_a_layer_whose_weight_is_read_on_real_images_alone_stays():
    network = Bright()
    assert find_layers(network, SHAPE, "net")["second"].not_factored is None
    told = must_stay(network)
    assert set(told) == {"second"}
    assert "the network fails: AttributeError" in told["second"]


def test_layers_to_blame_together_do_not_all_go():
    assert len(must_stay(Counting())) == 1


def test_a_network_that_never_answers_the_same_is_refused():
    with pytest.raises(UserError, match="'net' answers the same images differently each time"):
        must_stay(Chance())


def test_chance_in_evaluation_mode_alone_is_no_reason():
    class Noisy(Chance):
        def forward(self, x):
            y = self.layer(x).mean((2, 3))
            return y + torch.randn_like(y)

    state = torch.random.get_rng_state()
    network = Noisy()
    assert must_stay(network) == {}
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_networks_compute_the_same(dtype):
    torch.manual_seed(0)
    network = mynet.build().to(dtype)
    assert must_stay(network, torch.randn(2, 3, 32, 32, dtype=dtype)) == {}


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "squeezenet"])
def test_shipped_networks_compute_the_same(name):
    network, spec = create_network(name), network_spec(name)
    assert must_stay(network, torch.randn(2, *spec.input_shape)) == {}


def test_every_kind_of_layer_is_replaced_losslessly(monkeypatch):
    """A flattened map, groups, dilation, 1 x 1 kernels: and nothing is skipped."""
    from lowrank.surgery import equality

    replaced = []
    original = equality._replace_losslessly

    def noted(network, layer):
        original(network, layer)
        replaced.append(layer.name)
        assert isinstance(network.get_submodule(layer.name), nn.Sequential)

    monkeypatch.setattr(equality, "_replace_losslessly", noted)
    network = mynet.build()
    assert must_stay(network, torch.randn(2, 3, 32, 32)) == {}
    assert replaced == [
        "stem", "block.conv1", "block.conv2", "left", "right", "hidden", "classifier"
    ]  # fmt: skip


def test_computed_weights_are_left_alone():
    network = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Flatten())
    assert must_stay(network) == {}
