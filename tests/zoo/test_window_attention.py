"""Test that the window attention of Swin transformers with called projections computes the same."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

import lowrank
from lowrank.surgery.equality import layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.zoo.plain import can_be_folded, copied, fold
from lowrank.zoo.weight_files import load_trained
from lowrank.zoo.window_attention import WindowAttention, WindowAttentionV2

KINDS = {ShiftedWindowAttention: WindowAttention, ShiftedWindowAttentionV2: WindowAttentionV2}


def attention(kind, shift=(2, 1), **settings):
    torch.manual_seed(0)
    module = kind(8, [4, 3], list(shift), num_heads=2, **settings)
    for name, parameter in module.named_parameters():
        if name != "logit_scale":
            nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.seconds  # All of them together.
@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"proj_bias": False}])
@pytest.mark.parametrize("size", [(8, 9), (7, 8), (4, 9), (8, 2), (3, 3)])
@pytest.mark.parametrize("shift", [(2, 1), (0, 0), (2, 0), (0, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_torchvision(kind, shift, size, settings):
    original = attention(kind, shift, attention_dropout=0.2, dropout=0.1, **settings)
    module = copy.deepcopy(original)
    split = fold(module)
    assert type(module) is KINDS[kind]
    images = torch.randn(2, *size, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for tried in (original, module):
        torch.manual_seed(2)
        inputs = images.clone().requires_grad_()
        outputs = tried(inputs)
        (outputs * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
        gradients.append((outputs.detach(), inputs.grad))
    torch.testing.assert_close(gradients[1], gradients[0])
    for name, parameter in original.named_parameters():
        if name in split:
            queries, keys, values = parameter.grad.chunk(3)
            assert not keys.any()
            torch.testing.assert_close(module.q_bias.grad, queries)
            torch.testing.assert_close(module.v_bias.grad, values)
        else:
            torch.testing.assert_close(module.get_parameter(name).grad, parameter.grad)
    assert torch.equal(original.eval()(images), module.eval()(images))


def test_names_of_split_tensors():
    kinds = (ShiftedWindowAttention, ShiftedWindowAttentionV2)
    network = nn.ModuleList([attention(kind) for kind in kinds])
    network[1].qkv.bias.requires_grad_(False)
    assert can_be_folded(network)
    before = list(network[0].state_dict())
    assert fold(network) == ["1.qkv.bias"]
    assert fold(network) == []
    assert not can_be_folded(network)
    assert list(network[0].state_dict()) == before
    assert {"q_bias", "v_bias", "qkv.weight"} <= network[1].state_dict().keys()
    assert not network[1].q_bias.requires_grad


class Doubled(ShiftedWindowAttention):
    def forward(self, x):
        return 2 * super().forward(x)


class Computed(nn.Linear):
    pass


def test_other_classes_stay():
    with_other_layer = attention(ShiftedWindowAttention)
    with_other_layer.proj = Computed(8, 8)
    for module in (attention(Doubled), with_other_layer):
        kind = type(module)
        assert not can_be_folded(module)
        assert fold(module) == []
        assert type(module) is kind


def small_swin(block, width=16):
    torch.manual_seed(0)
    network = SwinTransformer(
        [4, 4], width, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0, num_classes=5, block=block
    )
    for name, parameter in network.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("block", [SwinTransformerBlock, SwinTransformerBlockV2])
def test_compressed_network(block):
    original = small_swin(block)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(images)
    small = lowrank.compress(
        original, (3, 32, 32), factorize={"linear": "svd"}, ranks={"select": "ratio", "ratio": 1.01}
    )
    with torch.no_grad():
        assert torch.equal(original(images), expected)
        assert small.network(images).shape == expected.shape
    network = copied(original)
    fold(network)
    table = find_layers(network, (3, 32, 32), "swin")
    for name in ("qkv", "proj"):
        layer = table[f"features.1.1.attn.{name}"]
        assert layer.not_factored is None
        assert layer.dense_macs == 64 * layer.in_channels * layer.out_channels
        assert not next(p for p in small.layers if p.name == layer.name).is_dense
    assert layers_that_must_stay(network, table, images) == {}


@pytest.mark.parametrize("stored", ["before", "after"])
@pytest.mark.parametrize("block", [SwinTransformerBlock, SwinTransformerBlockV2])
def test_weights_are_loaded_before_and_after_splitting(block, stored):
    trained, said = small_swin(block), []
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trained(images)
    if stored == "after":
        fold(trained)
    network = small_swin(block)
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    load_trained(network, dict(trained.state_dict()), source="file.pth", say=said.append)
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected)
    assert bool(said) == (block is SwinTransformerBlockV2)
