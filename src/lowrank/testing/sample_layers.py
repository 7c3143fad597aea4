"""Small layers, kernels and inputs on which factorizations are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lowrank.core.layers import PlainLayer
from lowrank.factorize import Decomposition, Moments, group_kernels, reconstruct
from lowrank.factorize.moments import output_error_squared

MAP = (8, 9)
# Layers of each kind. Channels and windows differ along the two axes, so that no two can be mixed
# up; there are more inputs than outputs, and the other way round.
LAYERS = {
    "window": (
        PlainLayer(8, 12, kernel=(3, 2), padding=(1, 1), bias=True),
        PlainLayer(6, 4, kernel=(3, 2), stride=(2, 1), padding=(1, 0)),
        PlainLayer(4, 6, kernel=(3, 2), dilation=(2, 1), padding=(2, 1)),
        PlainLayer(4, 6, kernel=(2, 3), stride=(2, 3), padding=(0, 2), dilation=(1, 2), bias=True),
        PlainLayer(8, 12, kernel=(3, 2), padding=(1, 1), groups=2, bias=True),
    ),
    "matrix": (
        PlainLayer(8, 12, bias=True),
        PlainLayer(12, 8, stride=(2, 1)),
        PlainLayer(16, 24, groups=2),
    ),
}
# Larger layers for the moments: on small ones, half of the ranks leave hardly any error to lower.
LAYERS_WITH_MOMENTS = {
    "window": (
        PlainLayer(12, 16, kernel=(3, 2)),
        PlainLayer(24, 32, kernel=(3, 2), groups=2, bias=True),
    ),
    "matrix": (PlainLayer(12, 16, bias=True),),
}


def kernel_of(layer: PlainLayer) -> np.ndarray:
    """Return a kernel of normally distributed weights, float32, (T, S / g, D_h, D_w)."""
    return np.random.default_rng(0).standard_normal(layer.weight_shape).astype(np.float32)


def bias_of(layer: PlainLayer) -> np.ndarray | None:
    """Return a bias, float32, (T,), or None for a layer without bias."""
    return np.arange(layer.out_channels, dtype=np.float32) if layer.bias else None


def described(layer: PlainLayer) -> str:
    """Describe a layer in the messages of the checks."""
    extras = [
        f"{name} {value}"
        for name, value, usual in (
            ("stride", layer.stride, (1, 1)),
            ("padding", layer.padding, (0, 0)),
            ("dilation", layer.dilation, (1, 1)),
            ("groups", layer.groups, 1),
        )
        if value != usual
    ]
    window = " x ".join(map(str, layer.kernel))
    return ", ".join(
        [f"{window} from {layer.in_channels} to {layer.out_channels} channels", *extras]
    )


def moments_of(layer: PlainLayer, *, in_patches: bool) -> Moments:
    """Return moments of inputs with most of their variance in a few directions."""
    size = (layer.in_channels // layer.groups) * (int(np.prod(layer.kernel)) if in_patches else 1)
    generator = np.random.default_rng(1)
    directions = np.linalg.qr(generator.standard_normal((layer.groups, size, size)))[0]
    scales = np.exp(-np.arange(size) / (size / 6))
    samples = 0.3 + generator.standard_normal((layer.groups, 4 * size, size)) * scales @ directions
    mean = samples.mean(1)
    samples -= mean[:, None]
    return Moments(mean, samples.swapaxes(1, 2) @ samples / (4 * size), 4 * size)


def images_for(layer: PlainLayer) -> torch.Tensor:
    """Return inputs of a layer, (images, S, height, width)."""
    shape = (2, layer.in_channels, *MAP)
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def outputs_of(result: Decomposition, layer: PlainLayer) -> list[torch.Tensor]:
    """Return the output of each plain layer, one after another."""
    outputs, biases = [images_for(layer)], [None] * (len(result.sequence) - 1) + [result.bias]
    for plain, weight, bias in zip(result.sequence, result.weights, biases, strict=True):
        outputs.append(convolved(outputs[-1], plain, weight, bias))
    return outputs[1:]


def convolved(
    images: torch.Tensor, layer: PlainLayer, weight: np.ndarray, bias: np.ndarray | None
) -> torch.Tensor:
    """Return the output of a layer, (images, T, height, width)."""
    options: dict[str, Any] = {
        name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")
    }
    bias_tensor = None if bias is None else torch.from_numpy(bias)
    return torch.nn.functional.conv2d(images, torch.from_numpy(weight), bias_tensor, **options)


def output_error(layer: PlainLayer, result: Decomposition, inputs: Moments) -> float:
    """Return the squared error of the outputs around their mean, summed over groups."""
    difference = kernel_of(layer).astype(np.float64) - reconstruct(result.sequence, result.weights)
    return sum(map(output_error_squared, group_kernels(layer, difference), inputs.covariance))
