import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import LayerTable
from lowrank.errors import UserError
from lowrank.surgery.finding import find_layers, layer_table
from lowrank.zoo.plain import fold

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

TABLES = sorted((Path(__file__).parents[2] / "data/networks").glob("*.json"))


@pytest.fixture
def table_of(register_network):
    def build(*modules, input_shape=(4, 9, 8)):
        register_network(lambda: nn.Sequential(*modules), "built", input_shape)
        return layer_table("built")

    return build


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_committed_tables_are_current(path):
    assert LayerTable.from_json(json.loads(path.read_text())) == layer_table(path.stem), (
        f"run `lowrank inspect {path.stem}`"
    )


def test_tables_of_the_shipped_networks_are_committed():
    assert {"vgg16", "resnet20"} <= {path.stem for path in TABLES}


def test_convolution_is_described(table_of):
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2)
    (layer,) = table_of(conv).layers
    assert layer.name == "0"
    assert (layer.in_channels, layer.out_channels, layer.kernel) == (4, 6, (3, 2))
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 1), (1, 0), (1, 2))
    assert (layer.groups, layer.bias, layer.input_map) == (2, True, (9, 8))
    assert layer.not_factored is None


def test_layers_are_in_forward_order(register_network):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4 * 9 * 8, 10)
            self.unused = nn.Linear(3, 3)
            self.first = nn.Conv2d(4, 4, 1)

        def forward(self, images):
            return self.last(self.first(images).flatten(1))

    register_network(Backwards, "backwards", (4, 9, 8))
    assert [layer.name for layer in layer_table("backwards").layers] == ["first", "last"]


def test_linear_layer_is_counted_at_each_position(table_of):
    first, second = table_of(
        nn.Flatten(2), nn.Linear(72, 5), nn.Linear(5, 7, bias=False), input_shape=(4, 9, 8)
    ).layers
    assert (first.kind, first.kernel, first.parameters) == ("linear", (1, 1), 72 * 5 + 5)
    assert first.dense_macs == 4 * 72 * 5
    assert second.dense_macs == 4 * 5 * 7


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding mode 'circular'"),
        (nn.Conv2d(4, 4, 2, padding="same"), "asymmetric padding"),
        (nn.Conv2d(4, 4, (3, 4), padding="same"), "asymmetric padding"),
        (nn.ConvTranspose2d(4, 6, 2, 2), "transposed"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
    ],
)
def test_layers_that_cannot_be_factored(table_of, module, reason):
    (layer,) = table_of(module).layers
    assert reason in layer.not_factored


@pytest.mark.parametrize(
    ("module", "padding"),
    [
        (nn.Conv2d(4, 4, 3, padding="same"), (1, 1)),
        (nn.Conv2d(4, 4, (5, 1), padding="same"), (2, 0)),
        (nn.Conv2d(4, 4, 2, padding="same", dilation=2), (1, 1)),
        (nn.Conv2d(4, 4, 3, padding="valid"), (0, 0)),
        (nn.Conv2d(1, 4, 3), (0, 0)),
    ],
)
def test_layers_that_can_be_factored(table_of, module, padding):
    (layer,) = table_of(module, input_shape=(module.in_channels, 9, 8)).layers
    assert layer.not_factored is None
    assert layer.padding == padding


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(1, 3)),
        nn.Conv2d(4, 6, 2, padding="same"),
        nn.Conv2d(4, 6, 3, padding=2, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    ],
)
def test_output_map_and_costs_match_the_module(table_of, module):
    (layer,) = table_of(module).layers
    outputs = module(torch.zeros(1, 4, 9, 8))
    assert layer.output_map(layer.input_map) == outputs.shape[2:]
    assert layer.dense_macs == outputs[0].numel() * 4 * module.weight[0, 0].numel()
    assert layer.parameters == sum(p.numel() for p in module.parameters())


def test_cost_of_a_transposed_convolution(table_of):
    (layer,) = table_of(nn.ConvTranspose2d(4, 6, 3, 2, bias=False)).layers
    assert layer.parameters == 4 * 6 * 9
    assert layer.dense_macs == 9 * 8 * 4 * 6 * 9


class Ending(nn.Module):
    """Network with a function between a 2 x 3 map of four channels and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(24)
        self.linear = nn.Linear(24, 5)
        self.function = function

    def forward(self, images):
        return self.linear(self.function(self, self.conv(images)))


def last_layer(function):
    return find_layers(Ending(function).eval(), (3, 4, 6), "ending").layers[-1]


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: torch.flatten(x, 1),
        lambda self, x: nn.Flatten()(x),
        lambda self, x: x.view(x.size(0), -1),
        lambda self, x: x.reshape(-1, 24),
        lambda self, x: x.to(memory_format=torch.channels_last).flatten(1),
        lambda self, x: self.dropout(x.flatten(1)),
        lambda self, x: self.relu(self.dropout(x.flatten(1))),
        lambda self, x: functional.relu(x.flatten(1)) * 2,
        lambda self, x: self.dropout(self.relu(x)).flatten(start_dim=1).contiguous(),
        lambda self, x: torch.reshape(x, (len(x), 24)),
    ],
)
def test_linear_layer_on_a_flattened_map_is_described_as_a_convolution(function):
    layer = last_layer(function)
    assert (layer.kind, layer.in_channels, layer.kernel) == ("linear", 4, (2, 3))
    assert (layer.input_map, layer.padding, layer.output_map(layer.input_map)) == (
        (2, 3), (0, 0), (1, 1),
    )  # fmt: skip
    assert layer.weight_shape == (5, 4, 2, 3)
    assert (layer.parameters, layer.dense_macs) == (24 * 5 + 5, 24 * 5)
    assert layer.not_factored is None


@pytest.mark.parametrize(
    "function",
    [
        # Functions that mix the values, and vectors that are not flattened maps.
        lambda self, x: self.norm(x.flatten(1)),
        lambda self, x: x.flatten(1) @ torch.eye(24),
        lambda self, x: functional.adaptive_avg_pool2d(x, 1).flatten(1).repeat(1, 6),
        lambda self, x: torch.zeros(1, 24),
    ],
)
def test_linear_layer_on_other_vectors_is_described_as_linear(function):
    layer = last_layer(function)
    assert (layer.kind, layer.in_channels, layer.kernel) == ("linear", 24, (1, 1))
    assert layer.input_map == (1, 1)


def test_map_of_one_pixel_is_described_as_a_vector(table_of):
    *_, linear = table_of(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).layers
    assert (linear.in_channels, linear.kernel) == (4, (1, 1))


@pytest.mark.parametrize("positions_first", [True, False])
def test_linear_layer_on_tokens(positions_first):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, images):  # (N, 4, 9, 8) -> (N, 9, 8, 4) or, as windows, (N 9, 8, 4)
            tokens = images.permute(0, 2, 3, 1)
            tokens = tokens if positions_first else tokens.reshape(-1, 8, 4)
            return self.linear(tokens).sum()

    (layer,) = find_layers(Tokens(), (4, 9, 8), "tokens").layers
    assert (layer.kernel, layer.input_map) == ((1, 1), (72, 1))
    assert layer.dense_macs == 72 * 4 * 6


class OneAxisAndThree(nn.Module):
    """Network with a convolution over one axis and a convolution over three axes."""

    def __init__(self, line, volume):
        super().__init__()
        self.line, self.volume = line, volume

    def forward(self, images):  # (N, 4, 9, 8)
        self.outputs = [self.line(images.flatten(2)), self.volume(images.unflatten(2, (3, 3)))]
        return self.outputs[0].sum()


@pytest.mark.parametrize(
    ("line", "volume", "reasons"),
    [
        (
            nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2),
            nn.Conv3d(4, 2, (3, 2, 3), (1, 1, 2), padding=(1, 0, 1), groups=2),
            ("a convolution over one axis", "a convolution over three axes"),
        ),
        (
            nn.Conv1d(4, 6, 4, padding="same"),
            nn.Conv3d(4, 2, 2, padding="valid", bias=False),
            ("a convolution over one axis", "a convolution over three axes"),
        ),
    ],
)
def test_convolutions_over_one_or_three_axes(line, volume, reasons):
    network = OneAxisAndThree(line, volume)
    layers = find_layers(network, (4, 9, 8), "axes").layers
    for layer, module, outputs, reason in zip(
        layers, (line, volume), network.outputs, reasons, strict=True
    ):
        assert layer.not_factored == reason
        assert layer.parameters == sum(p.numel() for p in module.parameters())
        assert layer.dense_macs == outputs[0].numel() * module.weight[0].numel()


def test_transposed_convolutions_over_one_or_three_axes():
    line, volume = nn.ConvTranspose1d(4, 6, 3, 2), nn.ConvTranspose3d(4, 2, 2)
    layers = find_layers(OneAxisAndThree(line, volume), (4, 9, 8), "axes").layers
    for layer, module in zip(layers, (line, volume), strict=True):
        assert layer.not_factored == "a transposed convolution"
        assert layer.parameters == sum(p.numel() for p in module.parameters())
        assert layer.dense_macs == 72 * 4 * module.weight[0].numel()


def test_module_in_two_places(table_of):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    (layer,) = table_of(conv, nn.ReLU(), conv).layers
    assert layer.not_factored == "it occurs in 2 places in the network"


class Calls(nn.Module):
    """Network with two convolutions whose forward pass is a given function."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, images):
        return self.function(self, images)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda self, x: self.first(self.first(x)), "it is called 2 times in one forward pass"),
        (lambda self, x: self.first(x) * self.first.weight.mean(), "reads its `weight`"),
        (lambda self, x: self.first(x.to(self.first.weight.dtype)), "reads its `weight`"),
        (lambda self, x: self.first(x)[:, : self.first.out_channels], "reads its `out_channels`"),
        (lambda self, x: self.first(input=x), None),
    ],
)
def test_use_of_a_layer_in_the_forward_pass(function, reason):
    (layer,) = find_layers(Calls(function), (4, 9, 8), "calls").layers
    assert layer.name == "first"
    assert layer.not_factored is None if reason is None else reason in layer.not_factored


def test_weight_shared_by_two_layers():
    network = Calls(lambda self, x: self.second(self.first(x)))
    network.second.weight = network.first.weight
    layers = find_layers(network, (4, 9, 8), "tied").layers
    assert [layer.not_factored for layer in layers] == ["another layer shares its weight"] * 2


class Standardized(nn.Conv2d):
    def forward(self, images):
        return functional.conv2d(images, self.weight - self.weight.mean(), self.bias)


class SameForward(nn.Conv2d):
    def reset_parameters(self):
        super().reset_parameters()


def with_own_forward(module):
    module.forward = lambda images: images
    return module


def with_hook(module):
    module.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Standardized(4, 4, 1), "its class Standardized changes what Conv2d computes"),
        (with_own_forward(nn.Conv2d(4, 4, 1)), "changes what Conv2d computes"),
        (with_hook(nn.Conv2d(4, 4, 1)), "it has hooks"),
    ],
)
def test_layers_that_change_the_computation(table_of, module, reason):
    (layer,) = table_of(module).layers
    assert reason in layer.not_factored


@pytest.mark.parametrize(
    "module",
    [
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
    ],
)
def test_computed_weights_are_folded_before_the_table_is_built(table_of, module):
    (layer,) = table_of(module).layers
    assert layer.not_factored is None


@pytest.mark.parametrize(
    "module",
    [
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
    ],
)
def test_layers_with_computed_weights_cannot_be_factored(module):
    (layer,) = find_layers(nn.Sequential(module), (4, 9, 8), "built").layers
    assert "computed from other tensors" in layer.not_factored


def test_subclass_with_the_same_forward_can_be_factored(table_of):
    (layer,) = table_of(SameForward(4, 4, 1)).layers
    assert layer.not_factored is None


def test_projections_of_attention_are_layers_of_a_folded_network():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.linear = nn.Linear(4, 4)

        def forward(self, images):
            tokens = images.flatten(2).transpose(1, 2)
            return self.linear(self.attention(tokens, tokens, tokens)[0]).mean(1)

    network = Attention()
    # Without folding, attention reads the weights and does not call the output projection.
    (layer,) = find_layers(network, (4, 9, 8), "attention").layers
    assert layer.name == "linear"
    fold(network)
    table = find_layers(network, (4, 9, 8), "attention")
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert [layer.name for layer in table.layers] == [
        *(f"attention.{name}" for name in names),
        "linear",
    ]
    for layer in table.layers:
        assert (layer.kind, layer.kernel, layer.bias) == ("linear", (1, 1), True)
        assert (layer.in_channels, layer.out_channels, layer.input_map) == (4, 4, (72, 1))
        assert layer.not_factored is None


def test_transformer_layer_reads_weights_for_its_fast_path():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, images):
            return self.layer(images.flatten(2).transpose(1, 2)).mean(1)

    layers = find_layers(Encoder(), (4, 9, 8), "encoder").layers
    assert [layer.name for layer in layers] == ["layer.linear1", "layer.linear2"]
    assert all("reads its `bias`, `weight`" in layer.not_factored for layer in layers)


def test_lazy_layers():
    network = nn.Sequential(nn.LazyConv2d(6, 3), nn.Flatten(), nn.LazyLinear(5))
    conv, linear = find_layers(network, (4, 9, 8), "lazy").layers
    assert (conv.in_channels, linear.weight_shape) == (4, (5, 6, 7, 6))
    assert conv.not_factored is linear.not_factored is None
    network(torch.randn(2, 4, 9, 8)).sum().backward()


def test_network_is_not_changed():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(288, 2))
    network[1].eval()
    before = list(network.modules())
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    find_layers(network, (4, 9, 8), "kept")
    assert list(network.modules()) == before
    assert [module.training for module in before] == [True, True, False, True, True]
    assert all(torch.equal(buffers[name], buffer) for name, buffer in network.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in before)


def test_network_that_rejects_the_image_is_not_changed():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(5, 2))
    before = list(network.modules())
    message = r"network 'small' does not accept .* \(4, 9, 8\).*RuntimeError"
    with pytest.raises(UserError, match=message):
        find_layers(network, (4, 9, 8), "small")
    assert list(network.modules()) == before


def test_network_without_parameters():
    assert find_layers(nn.Flatten(), (4, 9, 8), "none").layers == ()


def test_user_network():
    source = NetworkSource(factory="mynet:build", input_shape=(3, 32, 32))
    table = layer_table(source, "mine")
    assert (table.network, table.input_shape) == ("mine", (3, 32, 32))
    reasons = {layer.name: layer.not_factored for layer in table.layers}
    assert list(reasons) == [
        "stem", "block.conv1", "block.conv2", "left", "right", "depthwise", "hidden", "classifier",
    ]  # fmt: skip
    assert [name for name, reason in reasons.items() if reason] == ["depthwise"]
    assert table["block.conv1"].dilation == (2, 2)
    assert (table["block.conv2"].groups, table["block.conv2"].kernel) == (2, (3, 5))
    assert table["hidden"].weight_shape == (32, 32, 4, 4)


def test_torchvision_network():
    source = NetworkSource(network="torchvision/googlenet", input_shape=(3, 64, 64))
    table = layer_table(source)
    assert len(table.layers) == 58
    assert (table.network, table.layers[-1].name) == ("googlenet", "fc")
