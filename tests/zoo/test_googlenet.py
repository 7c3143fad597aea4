import pytest
import torch
from torch import nn

from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network
from lowrank.zoo.googlenet import GoogLeNet, Inception

# Name, input channels, output channels, kernel size, side of the output map.
STEM = [
    ("conv1.7x7_s2", 3, 64, 7, 112),
    ("conv2.3x3_reduce", 64, 64, 1, 56),
    ("conv2.3x3", 64, 192, 3, 56),
]
# Table 1 of the paper: name, side of the map, input channels, output channels of 1x1, 3x3_reduce,
# 3x3, 5x5_reduce, 5x5, pool_proj.
INCEPTIONS = [
    ("3a", 28, 192, 64, 96, 128, 16, 32, 32),
    ("3b", 28, 256, 128, 128, 192, 32, 96, 64),
    ("4a", 14, 480, 192, 96, 208, 16, 48, 64),
    ("4b", 14, 512, 160, 112, 224, 24, 64, 64),
    ("4c", 14, 512, 128, 128, 256, 24, 64, 64),
    ("4d", 14, 512, 112, 144, 288, 32, 64, 64),
    ("4e", 14, 528, 256, 160, 320, 32, 128, 128),
    ("5a", 7, 832, 256, 160, 320, 32, 128, 128),
    ("5b", 7, 832, 384, 192, 384, 48, 128, 128),
]
CLASSIFIER = [("loss3.classifier", 1024, 1000, 1, 1)]


def convolutions_of(
    name, side, inputs, ones, threes_reduce, threes, fives_reduce, fives, projection
):
    return [
        (f"inception_{name}.1x1", inputs, ones, 1, side),
        (f"inception_{name}.3x3_reduce", inputs, threes_reduce, 1, side),
        (f"inception_{name}.3x3", threes_reduce, threes, 3, side),
        (f"inception_{name}.5x5_reduce", inputs, fives_reduce, 1, side),
        (f"inception_{name}.5x5", fives_reduce, fives, 5, side),
        (f"inception_{name}.pool_proj", inputs, projection, 1, side),
    ]


LAYERS = [*STEM, *(row for module in INCEPTIONS for row in convolutions_of(*module)), *CLASSIFIER]


def test_layers_parameters_and_macs_match_hand_computed_values():
    with torch.device("meta"):
        network = create_network("googlenet")
    table = find_layers(network, (3, 224, 224), "googlenet")
    layers = [
        (
            layer.name,
            layer.in_channels,
            layer.out_channels,
            layer.kernel[0],
            layer.output_map(layer.input_map)[0],
        )
        for layer in table.layers
    ]
    assert layers == LAYERS
    assert len(LAYERS) == 58

    parameters = sum(s * t * side**2 + t for _, s, t, side, _ in LAYERS)
    assert sum(p.numel() for p in network.parameters()) == parameters == 6_998_552

    macs = sum(s * t * side**2 * map_side**2 for _, s, t, side, map_side in LAYERS)
    assert sum(layer.dense_macs for layer in table.layers) == macs == 1_582_671_872


def test_names_of_the_two_auxiliary_classifiers_in_caffe():
    # `loss1/conv`, `loss1/fc`, `loss1/classifier` in bvlc_googlenet.caffemodel; loss2 likewise.
    assert GoogLeNet.training_only == ("loss1", "loss2")


def test_inception_module_concatenates_branches_in_the_order_of_the_paper():
    inception = Inception(4, 1, 2, 2, 2, 3, 4)
    for module in inception.values():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for value, name in enumerate(("1x1", "3x3", "5x5", "pool_proj"), start=1):
        nn.init.constant_(inception[name].bias, value)
    outputs = inception(torch.randn(2, 4, 5, 6))
    expected = torch.tensor([1.0, 2, 2, 3, 3, 3, 4, 4, 4, 4])
    assert torch.equal(outputs, expected[:, None, None].expand(2, 10, 5, 6))


@pytest.mark.parametrize("layer", ["1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"])
def test_relu_follows_every_convolution_of_an_inception_module(layer):
    inception = Inception(4, 1, 1, 1, 1, 1, 1)
    for name, module in inception.items():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, -1e6 if name == layer else 1.0)
    outputs = inception(torch.rand(1, 4, 5, 5))[0, :, 2, 2]
    # Channel of the branch, and its value: after a reduction that outputs zeros, only the bias.
    channel, value = {
        "1x1": (0, 0),
        "3x3_reduce": (1, 1),
        "3x3": (1, 0),
        "5x5_reduce": (2, 1),
        "5x5": (2, 0),
        "pool_proj": (3, 0),
    }[layer]
    assert outputs[channel] == value
    assert (outputs > 1).sum() == 3
