"""AlexNet for ImageNet, in Caffe's form (Krizhevsky et al. 2012; BVLC's `bvlc_alexnet`)."""

from collections import OrderedDict

from torch import nn

from lowrank.zoo.imagenet import (
    BVLC_MEAN,
    ResponseNorm,
    imagenet_spec,
    linear_layers,
    with_fresh_weights,
)
from lowrank.zoo.registry import register


class AlexNet(nn.Sequential):
    """Five convolutions, three of them with two groups, and three linear layers.

    61.0 M parameters and 724 M multiply-accumulates at 227 x 227. This is the network that Kim et
    al. 2016 and Astrid & Lee 2018 compress; torchvision's `alexnet` differs from it. Layers have
    Caffe's names. (N, 3, 227, 227) -> (N, classes).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        layers = OrderedDict(
            conv1=nn.Conv2d(3, 96, 11, stride=4),
            relu1=nn.ReLU(inplace=True),
            norm1=ResponseNorm(alpha=1e-4, k=1),
            pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=nn.ReLU(inplace=True),
            norm2=ResponseNorm(alpha=1e-4, k=1),
            pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        super().__init__(layers | linear_layers(256 * 6 * 6, num_classes))


@register(imagenet_spec("alexnet", 227, BVLC_MEAN))
def alexnet(num_classes: int = 1000) -> nn.Module:
    """Build AlexNet with two groups, as Caffe trains it."""
    return with_fresh_weights(AlexNet(num_classes))
