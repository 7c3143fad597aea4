"""A network in a module of the user, built by a `factory`."""

import torch
from torch import nn


class Block(nn.Module):
    """A residual block of a dilated and a grouped convolution, both without bias."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (3, 5), padding=(1, 2), groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class MyNet(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.block = Block(width)
        self.left = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.right = nn.Conv2d(width, width, 1, stride=2)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(2 * width * 4 * 4, 32)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        x = self.pool(torch.relu(self.depthwise(x)))
        x = self.drop(x.view(x.size(0), -1))
        return self.classifier(torch.relu(self.hidden(x)))


def build(num_classes=10, width=16):
    """Build a network for images of 3 x 32 x 32."""
    return MyNet(num_classes, width)
