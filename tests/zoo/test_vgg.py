import pytest
import torch
from torch import nn

from lowrank.surgery.finding import find_layers, layer_table
from lowrank.zoo import create_network

# Input channels, output channels and side of the map of all 3 x 3 convolutions.
CONVOLUTIONS = [
    (3, 64, 32),
    (64, 64, 32),
    (64, 128, 16),
    (128, 128, 16),
    (128, 256, 8),
    (256, 256, 8),
    (256, 256, 8),
    (256, 512, 4),
    (512, 512, 4),
    (512, 512, 4),
    (512, 512, 2),
    (512, 512, 2),
    (512, 512, 2),
]


def test_layers_match_the_paper():
    *convolutions, classifier = layer_table("vgg16").layers
    sizes = [(layer.in_channels, layer.out_channels, layer.input_map) for layer in convolutions]
    assert sizes == [(s, t, (size, size)) for s, t, size in CONVOLUTIONS]
    assert {layer.kernel for layer in convolutions} == {(3, 3)}
    assert (classifier.kind, classifier.in_channels, classifier.out_channels) == ("linear", 512, 10)
    assert [layer.name for layer in (*convolutions[:3], classifier)] == [
        "features.conv1_1",
        "features.conv1_2",
        "features.conv2_1",
        "classifier",
    ]


def test_parameters_and_macs_match_hand_computed_values():
    kernels = sum(9 * s * t for s, t, _ in CONVOLUTIONS)
    norms = sum(2 * t for _, t, _ in CONVOLUTIONS)
    classifier = 512 * 10 + 10
    parameters = sum(p.numel() for p in create_network("vgg16").parameters())
    assert parameters == kernels + norms + classifier == 14_724_042

    expected = sum(9 * s * t * size * size for s, t, size in CONVOLUTIONS) + 512 * 10
    macs = sum(layer.dense_macs for layer in layer_table("vgg16").layers)
    assert macs == expected == 313_201_664


def test_activations_of_a_fresh_network_keep_their_scale():
    torch.manual_seed(0)
    network = create_network("vgg16").train()
    with torch.inference_mode():
        features = network.features(torch.randn(4, 3, 32, 32))
    assert 0.1 < features.std() < 10
    assert not any(module.bias is not None for module in network.features if _is_conv(module))


def _is_conv(module):
    return isinstance(module, nn.Conv2d)


# Name, input channels, output channels, kernel size, side of the output map.
VGG16_IMAGENET = [
    ("conv1_1", 3, 64, 3, 224),
    ("conv1_2", 64, 64, 3, 224),
    ("conv2_1", 64, 128, 3, 112),
    ("conv2_2", 128, 128, 3, 112),
    ("conv3_1", 128, 256, 3, 56),
    ("conv3_2", 256, 256, 3, 56),
    ("conv3_3", 256, 256, 3, 56),
    ("conv4_1", 256, 512, 3, 28),
    ("conv4_2", 512, 512, 3, 28),
    ("conv4_3", 512, 512, 3, 28),
    ("conv5_1", 512, 512, 3, 14),
    ("conv5_2", 512, 512, 3, 14),
    ("conv5_3", 512, 512, 3, 14),
    ("fc6", 512, 4096, 7, 1),
    ("fc7", 4096, 4096, 1, 1),
    ("fc8", 4096, 1000, 1, 1),
]
VGG_S = [
    ("conv1", 3, 96, 7, 109),
    ("conv2", 96, 256, 5, 33),
    ("conv3", 256, 512, 3, 17),
    ("conv4", 512, 512, 3, 17),
    ("conv5", 512, 512, 3, 17),
    ("fc6", 512, 4096, 6, 1),
    ("fc7", 4096, 4096, 1, 1),
    ("fc8", 4096, 1000, 1, 1),
]


@pytest.mark.parametrize(
    ("name", "layers", "all_parameters", "all_macs"),
    [
        ("vgg16_imagenet", VGG16_IMAGENET, 138_357_544, 15_470_264_320),
        ("vgg_s", VGG_S, 102_908_520, 2_637_708_320),
    ],
)
def test_imagenet_networks_match_hand_computed_values(name, layers, all_parameters, all_macs):
    with torch.device("meta"):
        network = create_network(name)
    table = find_layers(network, (3, 224, 224), name)
    sizes = [
        (
            layer.name,
            layer.in_channels,
            layer.out_channels,
            layer.kernel[0],
            layer.output_map(layer.input_map)[0],
        )
        for layer in table.layers
    ]
    assert sizes == layers
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())

    parameters = sum(s * t * side**2 + t for _, s, t, side, _ in layers)
    assert sum(p.numel() for p in network.parameters()) == parameters == all_parameters

    macs = sum(s * t * side**2 * map_side**2 for _, s, t, side, map_side in layers)
    assert sum(layer.dense_macs for layer in table.layers) == macs == all_macs
