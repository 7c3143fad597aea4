"""Reconstruction of a kernel from its factors."""

from collections.abc import Sequence
from math import gcd

import numpy as np

from lowrank.core.layers import PlainLayer


def reconstruct(sequence: Sequence[PlainLayer], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return the kernel of the single convolution that is equivalent to a sequence of plain layers.

    TensorLy's `cp_to_tensor`, `tucker_to_tensor` and `tt_to_tensor` are as fast, but each handles
    one form of sequence and no groups, and `tucker_to_tensor` rounds differently.

    Returns
    -------
    np.ndarray
        Shape (T, S / g, D_h, D_w), with the type of the weights, where g is the greatest common
        divisor of the layers' group counts.

    Raises
    ------
    ValueError
        If two layers have a window along the same axis. With a stride between them, they may not be
        equivalent to one convolution with the layer's geometry.
    """
    for axis in (0, 1):
        if sum(layer.kernel[axis] > 1 for layer in sequence) > 1:
            raise ValueError(f"more than one layer has a window along axis {axis}: {sequence}")
    groups = gcd(*(layer.groups for layer in sequence))
    first, *rest = zip(sequence, weights, strict=True)
    if first[0].groups == groups:
        composed = first[1]
    else:
        channels = first[0].in_channels // groups
        identity = np.eye(channels, dtype=first[1].dtype)
        composed = np.tile(identity, (groups, 1))[:, :, None, None]
        rest = [first, *rest]
    for layer, weight in rest:
        composed = _composed(composed, weight, layer.groups)
    return composed


def _composed(before: np.ndarray, after: np.ndarray, groups: int) -> np.ndarray:
    """Return one kernel for two convolutions; the second one has `groups` groups.

    (M, S, D_h, D_w) and (N, M / groups, E_h, E_w) -> (N, S, D_h E_h, D_w E_w). Along each axis D or
    E is 1, so every tap of the result comes from one pair of taps.
    """
    (_, inputs, *window), (outputs, middle, *next_window) = before.shape, after.shape
    # (groups, N / groups * E^2, M / groups) x (groups, M / groups, S D^2)
    #     -> (groups, N / groups * E^2, S D^2)
    taps_last = after.transpose(0, 2, 3, 1).reshape(groups, -1, middle)
    product = taps_last @ before.reshape(groups, middle, -1)
    # (N, E_h, E_w, S, D_h, D_w) -> (N, S, D_h, E_h, D_w, E_w)
    separated = product.reshape(outputs, *next_window, inputs, *window).transpose(0, 3, 4, 1, 5, 2)
    height, width = (d * e for d, e in zip(window, next_window, strict=True))
    kernel: np.ndarray = separated.reshape(outputs, inputs, height, width)
    return kernel
