import pytest
import torch
from torch import nn

from lowrank.surgery.finding import layer_table
from lowrank.zoo import create_network
from lowrank.zoo.resnet import BasicBlock

# Input channels, output channels and side of the output map of all 3 x 3 convolutions.
CONVOLUTIONS = (
    [(3, 16, 32)]
    + 6 * [(16, 16, 32)]
    + [(16, 32, 16)]
    + 5 * [(32, 32, 16)]
    + [(32, 64, 8)]
    + 5 * [(64, 64, 8)]
)


def test_parameters_and_macs_match_hand_computed_values():
    kernels = sum(9 * s * t for s, t, _ in CONVOLUTIONS)
    norms = sum(2 * t for _, t, _ in CONVOLUTIONS)
    parameters = sum(p.numel() for p in create_network("resnet20").parameters())
    assert parameters == kernels + norms + 64 * 10 + 10 == 269_722

    expected = sum(9 * s * t * size * size for s, t, size in CONVOLUTIONS) + 64 * 10
    macs = sum(layer.dense_macs for layer in layer_table("resnet20").layers)
    assert macs == expected == 40_551_040


def test_layers_match_the_paper():
    *convolutions, classifier = layer_table("resnet20").layers
    sizes = [
        (layer.in_channels, layer.out_channels, layer.output_map(layer.input_map)[0])
        for layer in convolutions
    ]
    assert sizes == CONVOLUTIONS
    assert (classifier.kind, classifier.in_channels, classifier.out_channels) == ("linear", 64, 10)


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (10, 2)])
def test_shortcut_subsamples_and_zero_pads(channels, stride):
    block = BasicBlock(4, channels, stride).eval()
    nn.init.zeros_(block.norm2.weight)
    images = torch.randn(2, 4, 6, 6)
    with torch.inference_mode():
        outputs = block(images)
    expected = torch.zeros(2, channels, 6 // stride, 6 // stride)
    first = (channels - 4) // 2
    expected[:, first : first + 4] = images[:, :, ::stride, ::stride].clamp(min=0)
    assert torch.equal(outputs, expected)
