"""SqueezeNet 1.1 for ImageNet, in Caffe's form (Iandola et al. 2016)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.imagenet import BVLC_MEAN, imagenet_spec, with_fresh_weights
from lowrank.zoo.registry import register


class Fire(nn.ModuleDict):
    """A 1 x 1 convolution to `squeeze` channels, then parallel 1 x 1 and 3 x 3 convolutions.

    Each of the two parallel convolutions has `expand` output channels.
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__(
            {
                "squeeze1x1": nn.Conv2d(in_channels, squeeze, 1),
                "expand1x1": nn.Conv2d(squeeze, expand, 1),
                "expand3x3": nn.Conv2d(squeeze, expand, 3, padding=1),
            }
        )

    def forward(self, inputs: Tensor) -> Tensor:  # (N, S, H, W) -> (N, 2 expand, H, W)
        squeezed = functional.relu(self["squeeze1x1"](inputs), inplace=True)
        expanded = [
            functional.relu(self[name](squeezed), inplace=True)
            for name in ("expand1x1", "expand3x3")
        ]
        return torch.cat(expanded, 1)


class SqueezeNet(nn.Sequential):
    """A convolution, eight fire modules, a 1 x 1 convolution and a global average pool.

    1.24 M parameters and 388 M multiply-accumulates at 227 x 227. Layers have Caffe's names, with
    dots instead of slashes: `fire2.squeeze1x1`. (N, 3, 227, 227) -> (N, classes).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 64, 3, stride=2),
                relu_conv1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                fire2=Fire(64, 16, 64),
                fire3=Fire(128, 16, 64),
                pool3=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                fire4=Fire(128, 32, 128),
                fire5=Fire(256, 32, 128),
                pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                fire6=Fire(256, 48, 192),
                fire7=Fire(384, 48, 192),
                fire8=Fire(384, 64, 256),
                fire9=Fire(512, 64, 256),
                drop9=nn.Dropout(0.5),
                conv10=nn.Conv2d(512, num_classes, 1),
                relu_conv10=nn.ReLU(inplace=True),
                pool10=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )


@register(imagenet_spec("squeezenet", 227, BVLC_MEAN))
def squeezenet(num_classes: int = 1000) -> nn.Module:
    """Build SqueezeNet 1.1, as Caffe trains it."""
    return with_fresh_weights(SqueezeNet(num_classes))
