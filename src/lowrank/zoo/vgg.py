"""VGG-16 for 32 x 32 images and for ImageNet (Simonyan & Zisserman 2015), and VGG-S.

The network for 32 x 32 images has batch normalization and one linear layer. The two networks for
ImageNet have the form of Caffe's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lowrank.zoo.imagenet import (
    VGG_MEAN,
    ResponseNorm,
    imagenet_spec,
    linear_layers,
    with_fresh_weights,
)
from lowrank.zoo.registry import NetworkSpec, register

# Output channels of the convolutions between two max-pools, block by block.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _convolutions(*, batch_norm: bool) -> OrderedDict[str, nn.Module]:
    """Return the layers of VGG-16 up to the last max-pool, which outputs 512 channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, widths in enumerate(_BLOCKS, start=1):
        for position, width in enumerate(widths, start=1):
            suffix = f"{block}_{position}"
            layers[f"conv{suffix}"] = nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm)
            if batch_norm:
                layers[f"norm{suffix}"] = nn.BatchNorm2d(width)
            layers[f"relu{suffix}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    return layers


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions, each with batch normalization and ReLU, and one linear layer.

    14.7 M parameters and 313 M multiply-accumulates at 32 x 32. Layers have the papers' names:
    `features.conv1_1` ... `features.conv5_3`, `classifier`.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(_convolutions(batch_norm=True))
        self.classifier = nn.Linear(512, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, 32, 32) -> (N, classes)
        return self.classifier(torch.flatten(self.features(images), 1))


class VGG16ImageNet(nn.Sequential):
    """Thirteen 3 x 3 convolutions and three linear layers, without batch normalization.

    138.4 M parameters and 15.47 G multiply-accumulates at 224 x 224 (configuration D of the
    paper). Layers have Caffe's names: `conv1_1` ... `conv5_3`, `fc6`, `fc7`, `fc8`.
    (N, 3, 224, 224) -> (N, classes).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        layers = _convolutions(batch_norm=False)
        super().__init__(layers | linear_layers(512 * 7 * 7, num_classes))


class VGGS(nn.Sequential):
    """Five convolutions and three linear layers (Chatfield et al. 2014, CNN-S).

    102.9 M parameters and 2.64 G multiply-accumulates at 224 x 224. Layers have Caffe's names.
    (N, 3, 224, 224) -> (N, classes).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        layers = OrderedDict(
            conv1=nn.Conv2d(3, 96, 7, stride=2),
            relu1=nn.ReLU(inplace=True),
            norm1=ResponseNorm(alpha=5e-4, k=2),
            pool1=nn.MaxPool2d(3, stride=3, ceil_mode=True),
            conv2=nn.Conv2d(96, 256, 5),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2, stride=2, ceil_mode=True),
            conv3=nn.Conv2d(256, 512, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(512, 512, 3, padding=1),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(512, 512, 3, padding=1),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=3, ceil_mode=True),
        )
        super().__init__(layers | linear_layers(512 * 6 * 6, num_classes))


@register(NetworkSpec(name="vgg16", input_shape=(3, 32, 32), num_classes=10))
def vgg16(num_classes: int = 10) -> nn.Module:
    """Build VGG-16 with batch normalization for CIFAR-10."""
    return VGG16(num_classes)


@register(imagenet_spec("vgg16_imagenet", 224, VGG_MEAN))
def vgg16_imagenet(num_classes: int = 1000) -> nn.Module:
    """Build VGG-16 for ImageNet, as Caffe runs it."""
    return with_fresh_weights(VGG16ImageNet(num_classes))


@register(imagenet_spec("vgg_s", 224, VGG_MEAN))
def vgg_s(num_classes: int = 1000) -> nn.Module:
    """Build VGG-S for ImageNet, as Caffe runs it."""
    return with_fresh_weights(VGGS(num_classes))
