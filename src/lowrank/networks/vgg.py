"""VGG-16 for 32 x 32 images (Simonyan & Zisserman 2015; batch normalisation, one linear layer)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lowrank.networks.registry import NetworkSpec, register

# Output channels of the convolutions between two max-pools, block by block.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions, each with batch normalisation and ReLU, and one linear layer.

    14.7 M parameters and 313 M multiply-accumulates at 32 x 32. Layers bear the papers' names:
    `features.conv1_1` ... `features.conv5_3`, `classifier`.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for block, widths in enumerate(_BLOCKS, start=1):
            for position, width in enumerate(widths, start=1):
                at = f"{block}_{position}"
                layers[f"conv{at}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers[f"norm{at}"] = nn.BatchNorm2d(width)
                layers[f"relu{at}"] = nn.ReLU(inplace=True)
                channels = width
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, 32, 32) -> (N, classes)
        return self.classifier(torch.flatten(self.features(images), 1))


@register(NetworkSpec(name="vgg16", input_shape=(3, 32, 32), num_classes=10))
def vgg16() -> nn.Module:
    """VGG-16 with batch normalisation for CIFAR-10."""
    return VGG16()
