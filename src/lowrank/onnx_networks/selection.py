"""A PyTorch module that copies some of its input channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Selection(nn.Module):
    """Copies of some channels: a convolution or linear layer whose weight is never trained."""

    weight: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, is_linear: bool) -> None:
        super().__init__()
        shape = (out_channels, in_channels) + (() if is_linear else (1, 1))
        # A buffer, because training must not change it. It selects the first channels at first.
        first = torch.eye(out_channels, in_channels).reshape(shape)
        self.register_buffer("weight", first)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the selected channels."""
        if self.weight.ndim == 2:
            return functional.linear(inputs, self.weight)
        return functional.conv2d(inputs, self.weight)
