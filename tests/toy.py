"""A network that is small enough to train in a test."""

import torch
from torch import Tensor, nn


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(images)))
        features = torch.relu(self.conv2(features)).mean((2, 3))
        return self.classifier(self.dropout(features))


def toy(seed: int = 0, dropout: float = 0.0) -> Toy:
    torch.manual_seed(seed)
    return Toy(dropout)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    """Check that two networks have identical weights, bit for bit."""
    first_state, second_state = first.state_dict(), second.state_dict()
    assert first_state.keys() == second_state.keys()
    for name, tensor in first_state.items():
        assert torch.equal(tensor, second_state[name]), name
