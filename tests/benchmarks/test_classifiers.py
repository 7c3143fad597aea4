"""A small part of `benchmarks/all_classifiers.py`, which runs all classifiers of torchvision."""

from dataclasses import replace

import pytest
import torch
from classifiers import LARGEST_ERROR, Coverage, cover
from torch import nn
from vit import vit

from lowrank.config.network_source import NetworkSource

PASSED = Coverage(
    network="net",
    input_shape=(3, 8, 8),
    layers=4,
    factored=3,
    dense={"depthwise": 1},
    macs=(200, 100),
    macs_of_file=100,
    relative_error=1e-6,
    difference=0.3,
    seconds=1.0,
)


@pytest.mark.seconds
@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        pytest.param("mnasnet0_5", marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
    ],
)
def test_some_architectures_of_torchvision_pass(name):
    coverage = cover(NetworkSource(network=f"torchvision/{name}", input_shape=(3, 64, 64)))
    assert coverage.failure is None
    assert coverage.factored + sum(coverage.dense.values()) == coverage.layers
    before, after = coverage.macs
    assert after < before
    assert coverage.macs_of_file == after


@pytest.mark.seconds
def test_all_projections_of_a_transformer_are_replaced(register_network):
    register_network(vit, "vit")
    coverage = cover(NetworkSource(network="vit"))
    assert coverage.failure is None
    # The patches, the head, and in each of two blocks four projections and two linear layers.
    assert (coverage.factored, coverage.layers) == (14, 14)
    # The two products of queries, keys and values in each block belong to no layer.
    assert coverage.macs_of_file == coverage.macs[1] + 2 * 2 * 17 * 17 * 16


def test_zero_weights_of_a_network_are_replaced(register_network):
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.scale = nn.Parameter(1e-6 * torch.ones(8, 1, 1))
            self.head = nn.Linear(8 * 64, 5)
            nn.init.zeros_(self.head.weight)

        def forward(self, images):
            return self.head((self.scale * self.conv(images)).flatten(1))

    register_network(Silent, "silent", (3, 8, 8), 5)
    coverage = cover(NetworkSource(network="silent"))
    assert coverage.failure is None
    assert coverage.difference > 0.1


def test_a_network_passes():
    assert PASSED.failure is None
    assert PASSED.to_json()["macs"] == (200, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_error": 2 * LARGEST_ERROR}, "error 0.002 of the logits' range"),
        ({"relative_error": float("nan")}, "error nan"),
        ({"difference": 1e-4}, "images differ by 0.0001"),
        ({"difference": float("nan")}, "images differ by nan"),
        ({"factored": 0}, "no layer was factored"),
    ],
)
def test_a_network_fails(change, message):
    assert message in replace(PASSED, **change).failure
