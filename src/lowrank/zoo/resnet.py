"""Residual networks for 32 x 32 images (He et al. 2016, section 4.2, parameter-free shortcuts)."""

from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.registry import NetworkSpec, register


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut that subsamples and zero-pads (option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.added_channels = out_channels - in_channels

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.relu(self.norm1(self.conv1(inputs)))
        outputs = self.norm2(self.conv2(outputs))
        if self.added_channels:
            half = self.added_channels // 2
            inputs = inputs[:, :, :: self.stride, :: self.stride]
            inputs = functional.pad(inputs, (0, 0, 0, 0, half, self.added_channels - half))
        return self.relu(outputs + inputs)


class ResNet(nn.Module):
    """One convolution, three stages of `blocks` basic blocks, a global mean and a linear layer.

    The stages have 16, 32 and 64 channels.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        channels = 16
        for width in (16, 32, 64):
            for block in range(blocks):
                stride = 2 if block == 0 and width > 16 else 1
                stages.append(BasicBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, 32, 32) -> (N, classes)
        features = self.blocks(self.relu(self.norm(self.conv(images))))
        return self.classifier(self.flatten(self.pool(features)))


@register(NetworkSpec(name="resnet20", input_shape=(3, 32, 32), num_classes=10))
def resnet20() -> nn.Module:
    """Build ResNet-20 for CIFAR-10: 0.27 M parameters."""
    return ResNet(blocks=3)


@register(NetworkSpec(name="resnet56", input_shape=(3, 32, 32), num_classes=10))
def resnet56() -> nn.Module:
    """Build ResNet-56 for CIFAR-10: 0.85 M parameters."""
    return ResNet(blocks=9)
