import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank.networks.layers import layer_table

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
    assert json.loads(path.read_text()) == layer_table(path.stem).to_json(), (
        f"run `lowrank inspect {path.stem}`"
    )


def test_tables_of_the_shipped_networks_are_committed():
    assert {"vgg16", "resnet20"} <= {path.stem for path in TABLES}


def test_a_convolution_is_described(table_of):
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2)
    (layer,) = table_of(conv).layers
    assert layer.name == "0"
    assert (layer.in_channels, layer.out_channels, layer.kernel) == (4, 6, (3, 2))
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 1), (1, 0), (1, 2))
    assert (layer.groups, layer.bias, layer.input_map) == (2, True, (9, 8))
    assert layer.not_factored is None


def test_layers_come_in_forward_order(register_network):
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


def test_a_linear_layer_is_applied_at_each_position(table_of):
    at_once, at_each = table_of(
        nn.Flatten(2), nn.Linear(72, 5), nn.Linear(5, 7, bias=False), input_shape=(4, 9, 8)
    ).layers
    assert (at_once.kind, at_once.kernel, at_once.parameters) == ("linear", (1, 1), 72 * 5 + 5)
    assert at_once.dense_macs == 4 * 72 * 5
    assert at_each.dense_macs == 4 * 5 * 7


def test_a_layer_that_is_used_twice_stands_once(table_of):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert len(table_of(conv, nn.ReLU(), conv).layers) == 1


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads with 'reflect'"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "pads with 'circular'"),
        (nn.Conv2d(4, 4, 2, padding="same"), "pads one side more"),
        (nn.Conv2d(4, 4, (3, 4), padding="same"), "pads one side more"),
        (nn.ConvTranspose2d(4, 6, 2, 2), "transposed"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
    ],
)
def test_layers_that_take_no_factors(table_of, module, reason):
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
def test_layers_that_take_factors(table_of, module, padding):
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
def test_outputs_and_costs_are_those_of_the_module(table_of, module):
    (layer,) = table_of(module).layers
    outputs = module(torch.zeros(1, 4, 9, 8))
    assert layer.output_map(layer.input_map) == outputs.shape[2:]
    assert layer.dense_macs == outputs[0].numel() * 4 * module.weight[0, 0].numel()
    assert layer.parameters == sum(p.numel() for p in module.parameters())


def test_cost_of_a_transposed_convolution(table_of):
    (layer,) = table_of(nn.ConvTranspose2d(4, 6, 3, 2, bias=False)).layers
    assert layer.parameters == 4 * 6 * 9
    assert layer.dense_macs == 9 * 8 * 4 * 6 * 9
