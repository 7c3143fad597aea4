import torch
from torch import nn
from torch.nn import functional

from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network
from lowrank.zoo.alexnet import AlexNet

# Name, groups, input channels per group, output channels, kernel size, side of the output map.
LAYERS = [
    ("conv1", 1, 3, 96, 11, 55),
    ("conv2", 2, 48, 256, 5, 27),
    ("conv3", 1, 256, 384, 3, 13),
    ("conv4", 2, 192, 384, 3, 13),
    ("conv5", 2, 192, 256, 3, 13),
    ("fc6", 1, 256, 4096, 6, 1),
    ("fc7", 1, 4096, 4096, 1, 1),
    ("fc8", 1, 4096, 1000, 1, 1),
]


def test_layers_parameters_and_macs_match_hand_computed_values():
    with torch.device("meta"):
        network = create_network("alexnet")
    table = find_layers(network, (3, 227, 227), "alexnet")
    layers = [
        (
            layer.name,
            layer.groups,
            layer.in_channels // layer.groups,
            layer.out_channels,
            layer.kernel[0],
            layer.output_map(layer.input_map)[0],
        )
        for layer in table.layers
    ]
    assert layers == LAYERS

    parameters = [s * t * side**2 + t for _, _, s, t, side, _ in LAYERS]
    assert parameters == [
        34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000,
    ]  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == sum(parameters) == 60_965_224

    macs = [s * t * side**2 * map_side**2 for _, _, s, t, side, map_side in LAYERS]
    assert macs == [
        105_415_200, 223_948_800, 149_520_384, 112_140_288, 74_760_192,
        37_748_736, 16_777_216, 4_096_000,
    ]  # fmt: skip
    assert sum(layer.dense_macs for layer in table.layers) == sum(macs) == 724_406_816


def test_first_linear_layer_equals_a_convolution_over_the_last_map():
    torch.manual_seed(0)
    network = AlexNet().eval()
    children = list(network.children())
    flatten = children.index(network.flatten)
    kernel = network.fc6.weight.reshape(4096, 256, 6, 6)
    with torch.inference_mode():
        maps = nn.Sequential(*children[:flatten])(60 * torch.randn(1, 3, 227, 227))
        as_linear = nn.Sequential(*children[flatten : flatten + 2])(maps)
        as_convolution = functional.conv2d(maps, kernel, network.fc6.bias)
    torch.testing.assert_close(as_linear, as_convolution.flatten(1), rtol=1e-4, atol=1e-2)
