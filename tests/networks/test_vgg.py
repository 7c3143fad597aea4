import torch
from torch import nn

from lowrank.networks import create_network
from lowrank.networks.layers import layer_table

# Kernel 3 x 3, in and out channels, and the height and width of the map.
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


def test_layers_are_those_of_the_paper():
    *convolutions, classifier = layer_table("vgg16").layers
    found = [(layer.in_channels, layer.out_channels, layer.input_map) for layer in convolutions]
    assert found == [(s, t, (size, size)) for s, t, size in CONVOLUTIONS]
    assert {layer.kernel for layer in convolutions} == {(3, 3)}
    assert (classifier.kind, classifier.in_channels, classifier.out_channels) == ("linear", 512, 10)
    assert [layer.name for layer in (*convolutions[:3], classifier)] == [
        "features.conv1_1",
        "features.conv1_2",
        "features.conv2_1",
        "classifier",
    ]


def test_parameters_and_macs_by_hand():
    kernels = sum(9 * s * t for s, t, _ in CONVOLUTIONS)
    norms = sum(2 * t for _, t, _ in CONVOLUTIONS)
    classifier = 512 * 10 + 10
    found = sum(p.numel() for p in create_network("vgg16").parameters())
    assert found == kernels + norms + classifier == 14_724_042

    macs = sum(9 * s * t * size * size for s, t, size in CONVOLUTIONS) + 512 * 10
    found = sum(layer.dense_macs for layer in layer_table("vgg16").layers)
    assert found == macs == 313_201_664


def test_a_new_network_passes_signals_of_usual_size():
    torch.manual_seed(0)
    network = create_network("vgg16").train()
    with torch.inference_mode():
        features = network.features(torch.randn(4, 3, 32, 32))
    assert 0.1 < features.std() < 10
    assert not any(module.bias is not None for module in network.features if _is_conv(module))


def _is_conv(module):
    return isinstance(module, nn.Conv2d)
