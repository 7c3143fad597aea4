"""A PyTorch module whose output does not depend on the values of its input."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.core.layers import PlainLayer


class ConstantMap(nn.Module):
    """A convolution whose kernel is zero and never trained, so that its output is its bias.

    When the network is exported, it is a convolution, of which `remove_unread_channels` leaves the
    bias.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: PlainLayer) -> None:
        super().__init__()
        self.layer = layer
        # A buffer, because training must not change it.
        self.register_buffer("weight", torch.zeros(layer.weight_shape))
        bias = nn.Parameter(torch.zeros(layer.out_channels)) if layer.bias else None
        self.register_parameter("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the bias at each position of the output, (N, T, H, W)."""
        layer = self.layer
        # No gradient flows to the inputs, so the layers before cost no backward pass.
        return functional.conv2d(
            inputs.detach(),
            self.weight,
            self.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
