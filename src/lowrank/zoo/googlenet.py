"""GoogLeNet for ImageNet, in Caffe's form (Szegedy et al. 2015; BVLC's `bvlc_googlenet`)."""

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.imagenet import BVLC_MEAN, ResponseNorm, imagenet_spec, with_fresh_weights
from lowrank.zoo.registry import register


class Inception(nn.ModuleDict):
    """Four parallel branches: 1 x 1; 1 x 1 then 3 x 3; 1 x 1 then 5 x 5; max-pool then 1 x 1.

    Parameters
    ----------
    in_channels
        Channels of the input.
    ones, threes_reduce, threes, fives_reduce, fives, projection
        Output channels of the six convolutions, in the order of table 1 of the paper.
    """

    def __init__(
        self,
        in_channels: int,
        ones: int,
        threes_reduce: int,
        threes: int,
        fives_reduce: int,
        fives: int,
        projection: int,
    ) -> None:
        super().__init__(
            {
                "1x1": nn.Conv2d(in_channels, ones, 1),
                "3x3_reduce": nn.Conv2d(in_channels, threes_reduce, 1),
                "3x3": nn.Conv2d(threes_reduce, threes, 3, padding=1),
                "5x5_reduce": nn.Conv2d(in_channels, fives_reduce, 1),
                "5x5": nn.Conv2d(fives_reduce, fives, 5, padding=2),
                "pool": nn.MaxPool2d(3, stride=1, padding=1),
                "pool_proj": nn.Conv2d(in_channels, projection, 1),
            }
        )

    def forward(self, inputs: Tensor) -> Tensor:  # (N, S, H, W) -> (N, T, H, W)
        branches = (("1x1",), ("3x3_reduce", "3x3"), ("5x5_reduce", "5x5"), ("pool", "pool_proj"))
        return torch.cat([self._branch(inputs, names) for names in branches], 1)

    def _branch(self, outputs: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            outputs = self[name](outputs)
            if name != "pool":
                outputs = functional.relu(outputs, inplace=True)
        return outputs


class GoogLeNet(nn.Sequential):
    """Three convolutions, nine inception modules and one linear layer; no batch normalization.

    6.99 M parameters and 1.58 G multiply-accumulates at 224 x 224. This is the network that Kim et
    al. 2016 compress; torchvision's `googlenet` differs from it. Layers have Caffe's names, with
    dots instead of slashes: `conv2.3x3_reduce`, `inception_3a.5x5`, `loss3.classifier`.
    (N, 3, 224, 224) -> (N, classes).
    """

    # The two auxiliary classifiers in Caffe's file.
    training_only: ClassVar[tuple[str, ...]] = ("loss1", "loss2")

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(
            OrderedDict(
                conv1=_named(
                    ("7x7_s2", nn.Conv2d(3, 64, 7, stride=2, padding=3)),
                    ("relu_7x7", nn.ReLU(inplace=True)),
                ),
                pool1=_named(("3x3_s2", _halving_pool()), ("norm1", ResponseNorm(alpha=1e-4, k=1))),
                conv2=_named(
                    ("3x3_reduce", nn.Conv2d(64, 64, 1)),
                    ("relu_3x3_reduce", nn.ReLU(inplace=True)),
                    ("3x3", nn.Conv2d(64, 192, 3, padding=1)),
                    ("relu_3x3", nn.ReLU(inplace=True)),
                    ("norm2", ResponseNorm(alpha=1e-4, k=1)),
                ),
                pool2=_named(("3x3_s2", _halving_pool())),
                inception_3a=Inception(192, 64, 96, 128, 16, 32, 32),
                inception_3b=Inception(256, 128, 128, 192, 32, 96, 64),
                pool3=_named(("3x3_s2", _halving_pool())),
                inception_4a=Inception(480, 192, 96, 208, 16, 48, 64),
                inception_4b=Inception(512, 160, 112, 224, 24, 64, 64),
                inception_4c=Inception(512, 128, 128, 256, 24, 64, 64),
                inception_4d=Inception(512, 112, 144, 288, 32, 64, 64),
                inception_4e=Inception(528, 256, 160, 320, 32, 128, 128),
                pool4=_named(("3x3_s2", _halving_pool())),
                inception_5a=Inception(832, 256, 160, 320, 32, 128, 128),
                inception_5b=Inception(832, 384, 192, 384, 48, 128, 128),
                pool5=_named(("7x7_s1", nn.AvgPool2d(7)), ("drop_7x7_s1", nn.Dropout(0.4))),
                flatten=nn.Flatten(),
                loss3=_named(("classifier", nn.Linear(1024, num_classes))),
            )
        )


def _named(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _halving_pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


@register(imagenet_spec("googlenet", 224, BVLC_MEAN))
def googlenet(num_classes: int = 1000) -> nn.Module:
    """Build GoogLeNet with 5 x 5 branches and without auxiliary classifiers, as Caffe runs it."""
    return with_fresh_weights(GoogLeNet(num_classes))
