"""Test repeated forward passes with a replaced layer."""

import copy

import pytest
import torch
from torch import nn
from toy import assert_same_weights

from lowrank.surgery.replay import Replay


class Tangled(nn.Module):
    """Network with in-place operations, a layer that is called twice, and a side branch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        stem = self.relu(self.stem(images))
        first = self.relu(self.twice(stem))
        second = self.twice(first)
        second += self.side(stem)
        second.mul_(2)
        return self.head(self.relu(second).mean((2, 3)))


LAYERS = ["stem", "twice", "side", "head"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Tangled().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 6, 6)


def with_changed_layer(network, name):
    """Return a copy of the network with a changed layer."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.get_submodule(name).weight.mul_(1.5)
    return network


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_outputs_equal_those_of_a_complete_pass(network, images, name):
    changed, original = with_changed_layer(network, name), network.get_submodule(name)
    expected, expected_changed = network(images), changed(images)
    with Replay(network) as replay:
        assert torch.equal(replay.record(images), expected)
        for _ in range(2):
            network.set_submodule(name, changed.get_submodule(name))
            assert torch.equal(replay.again(images, name), expected_changed)
            network.set_submodule(name, original)
        replay.record(-images)
        network.set_submodule(name, changed.get_submodule(name))
        assert torch.equal(replay.again(-images, name), changed(-images))


@torch.no_grad()
def test_layers_before_the_replaced_layer_are_not_computed_again(network, images):
    called = []
    for name in LAYERS:
        module = network.get_submodule(name)
        module.forward = counted(module.forward, name, called)
    with Replay(network) as replay:
        replay.record(images)
        assert called == ["stem", "twice", "twice", "side", "head"]
        called.clear()
        original, network.side = network.side, nn.Identity()
        replay.again(images, "side")
        assert called == ["head"]
        network.side = original
    called.clear()
    network(images)
    assert called == ["stem", "twice", "twice", "side", "head"]


class Nested(nn.Module):
    """Network of blocks that add in place; the last two are one module."""

    def __init__(self):
        super().__init__()
        shared = Block()
        self.blocks = nn.Sequential(Block(), nn.Sequential(Block(), shared), shared)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.blocks(images).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images):
        outputs = self.second(self.first(images).relu_())
        outputs += images
        return outputs


@pytest.mark.parametrize("name", ["blocks.0.second", "blocks.1.0.first", "blocks.1.0.second"])
@torch.no_grad()
def test_parts_before_the_replaced_layer_are_not_computed_again(name):
    torch.manual_seed(0)
    network, images, called = Nested().eval(), torch.randn(2, 4, 3, 3), []
    changed = with_changed_layer(network, name)
    expected = changed(images.clone())
    for number, block in enumerate((network.blocks[0], network.blocks[1][0])):
        block.forward = counted(block.forward, f"block {number}", called)
    with Replay(network) as replay:
        replay.record(images.clone())
        called.clear()
        network.set_submodule(name, changed.get_submodule(name))
        assert torch.equal(replay.again(images.clone(), name), expected)
    assert called == (["block 0", "block 1"] if name.startswith("blocks.0") else ["block 1"])


class Rectifying(nn.Module):
    """Network with a part that changes its input in place; the input is read again behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, images):
        stem = self.stem(images)
        return self.head(self.part(stem) + stem)


@torch.no_grad()
def test_part_that_changes_its_input_in_place():
    torch.manual_seed(0)
    network, images = Rectifying().eval(), torch.randn(2, 4, 3, 3)
    changed = with_changed_layer(network, "head")
    with Replay(network) as replay:
        replay.record(images)
        network.head = changed.head
        assert torch.equal(replay.again(images, "head"), changed(images))


@torch.no_grad()
def test_images_from_inference_mode(network):
    with torch.inference_mode():
        images = torch.randn(2, 3, 6, 6)
    with Replay(network) as replay:
        replay.record(images)
        assert torch.equal(replay.again(images, "head"), network(images))


def counted(forward, name, called):
    def counting(*args):
        called.append(name)
        return forward(*args)

    return counting


@torch.no_grad()
def test_network_is_not_changed(network, images):
    before = copy.deepcopy(network)
    with Replay(network) as replay, pytest.raises(RuntimeError, match="channels"):
        replay.record(images[:, :2])
    assert_same_weights(network, before)
    assert all("forward" not in vars(module) for module in network.modules())
    assert torch.equal(network(images), before(images))


@torch.no_grad()
def test_memory_of_a_recorded_pass(network, images):
    with Replay(network) as replay:
        replay.record(images)
        assert replay.recorded_bytes == 4 * 2 * (4 * 4 * 36 + 5)
