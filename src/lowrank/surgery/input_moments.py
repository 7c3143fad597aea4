"""Measure the mean and covariance of layer inputs on real images."""

from collections.abc import Iterable
from contextlib import suppress
from math import ceil, isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.core.layers import Layer
from lowrank.errors import UserError
from lowrank.factorize import Moments, Shift
from lowrank.zoo.forward import evaluation_mode

# Maximum number of positions that each image contributes: 8 along each axis of a large map, all of
# a map of 1 x 40. Neighboring positions are highly correlated, so more positions add little
# information.
_POSITIONS = 64

# Largest patch size for which the covariance of patches is measured. For larger patches, the
# covariance of the channels replaces it. At this size, a covariance takes 85 MB in float32.
_LARGEST_PATCH = 4608

# Samples of small batches are collected up to a quarter of the number of entries of a sample. This
# takes a quarter of the memory of the covariance, and the sums take less time than the products.
_WAITING_SHARE = 4


@torch.no_grad()
def input_moments(
    network: nn.Module, layers: Iterable[Layer], batches: Iterable[Any]
) -> dict[str, Moments]:
    """Return the mean and covariance of the inputs of each layer, by layer name.

    Parameters
    ----------
    network
        Network to run in evaluation mode. Its mode is restored afterwards.
    layers
        Layers from its layer table that the forward pass calls.
    batches
        Images as the network expects them, (N, C, H, W), or other inputs. Labels are not needed.

    Raises
    ------
    UserError
        If there are no images.
    """
    sums_by_layer = {layer.name: InputSums(layer) for layer in layers}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(sums.add_call, with_kwargs=True)
        for name, sums in sums_by_layer.items()
    ]
    try:
        with evaluation_mode(network):
            for images in batches:
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums.moments() for name, sums in sums_by_layer.items()}


@torch.no_grad()
def shifted_moments(
    original: nn.Module, network: nn.Module, layer: Layer, batches: Iterable[Any]
) -> tuple[Moments, Shift]:
    """Return the input moments of one layer, and their shift relative to the original network.

    Both networks run over the same images in evaluation mode.

    Parameters
    ----------
    original
        Original network.
    network
        The same network with other layers replaced.
    layer
        Layer of the layer table that both networks call.
    batches
        Images as the network expects them, (N, C, H, W), or other inputs.

    Raises
    ------
    UserError
        If there are no images.
    """
    sums, inputs_now, inputs_before = ShiftSums(layer), _Inputs(layer), _Inputs(layer)
    hooks = [
        module.get_submodule(layer.name).register_forward_pre_hook(inputs.keep, with_kwargs=True)
        for module, inputs in ((original, inputs_before), (network, inputs_now))
    ]
    try:
        with evaluation_mode(original), evaluation_mode(network):
            for images in batches:
                for module in (original, network):
                    with suppress(_Reached):
                        module(images)
                sums.add(inputs_before.samples, inputs_now.samples)
    finally:
        for hook in hooks:
            hook.remove()
    return sums.shifted_moments()


class _Reached(Exception):  # noqa: N818  (not an error)
    """Signal that a forward pass reached the layer, so the rest of the pass can be skipped."""


class _Inputs:
    """Inputs of the last call of a layer. Keeping them ends the forward pass."""

    samples: Tensor

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def keep(
        self, module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """Store the inputs of a call and raise _Reached."""
        self.samples = samples_of(self._layer, input_of_call(arguments, keywords))
        raise _Reached


class InputSums:
    """Sums of the input patches of one layer and of their products."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        channels = layer.in_channels // layer.groups
        size = channels * prod(layer.kernel) if _has_patches(layer) else channels
        self._count = 0
        # Mean of the first batch. Subtracting it avoids cancellation in float32 products when the
        # mean is far from 0.
        self.pilot = torch.zeros(())
        self.first = torch.zeros(layer.groups, size, dtype=torch.float64)
        self.second = torch.zeros(layer.groups, size, size)
        # Samples of small batches wait here, because adding their products to the sums takes longer
        # than the products.
        self._waiting: list[Tensor] = []

    def add_call(
        self, module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """Add the inputs of a call; this is a hook of the layer."""
        self.add(samples_of(self._layer, input_of_call(arguments, keywords)))

    def add(self, samples: Tensor) -> None:
        """Add samples (g, positions, n), as `samples_of` returns them."""
        if not self._count:
            self.pilot = samples.mean(1, keepdim=True)
        samples = samples - self.pilot
        self._count += samples.shape[1]
        self.first += samples.sum(1).cpu()
        self._waiting.append(samples)
        if sum(part.shape[1] for part in self._waiting) >= samples.shape[2] / _WAITING_SHARE:
            self._add_products()

    def _add_products(self) -> None:
        if self._waiting:
            samples = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting, 1)
            self.second += _products(samples)
            self._waiting.clear()

    def moments(self) -> Moments:
        """Return the moments of all samples."""
        if not self._count:
            raise UserError(
                f"no image reached layer '{self._layer.name}': measuring moments needs at least "
                "one image."
            )
        self._add_products()
        mean, second = (sums.div_(self._count) for sums in (self.first, self.second))
        # Compute in place: for a wide layer, memory is too small for a second matrix.
        covariance = _minus_product(second, mean, mean)
        mean += self.pilot.squeeze(1).cpu()
        return Moments(mean.numpy(), covariance.numpy(), self._count)


class ShiftSums:
    """Sums of the inputs of one layer in the original and in the changed network."""

    def __init__(self, layer: Layer) -> None:
        self._now = InputSums(layer)
        self._pilot = torch.zeros(())
        self._first = torch.zeros_like(self._now.first)
        self._crossed = torch.zeros_like(self._now.second)

    def add(self, before: Tensor, now: Tensor) -> None:
        """Add samples (g, positions, n) of the same images in the original and changed network."""
        self._now.add(now)
        if not self._pilot.ndim:
            self._pilot = before.mean(1, keepdim=True)
        shifted = before - self._pilot
        self._first += shifted.sum(1).cpu()
        self._crossed += (shifted.mT @ (now - self._now.pilot)).cpu()

    def shifted_moments(self) -> tuple[Moments, Shift]:
        """Return the moments in the changed network, and the shift; the sums are used up.

        Raises UserError without samples.
        """
        moments = self._now.moments()
        self._first /= moments.samples
        mean = torch.from_numpy(moments.mean) - self._now.pilot.squeeze(1).cpu()
        _minus_product(self._crossed.div_(moments.samples), self._first, mean)
        self._first += self._pilot.squeeze(1).cpu()
        return moments, Shift(self._first.numpy(), self._crossed.numpy())


def _products(samples: Tensor) -> Tensor:
    """Return the sums over positions of products (g, n, n), in main memory.

    Samples have the shape (g, positions, n).
    """
    if samples.device.type != "cpu":
        return (samples.mT @ samples).cpu()
    # NumPy detects that both matrices are the same and computes half of the products (BLAS syrk).
    matrix = samples.numpy()
    return torch.from_numpy(matrix.swapaxes(1, 2) @ matrix)


def _minus_product(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Subtract the outer product of two means (g, n) from `products` (g, n, n), in place."""
    return products.baddbmm_(left[:, :, None].float(), right[:, None].float(), alpha=-1)


def _has_patches(layer: Layer) -> bool:
    """Return whether the covariance of patches is measured, rather than of channels only."""
    return layer.in_channels // layer.groups * prod(layer.kernel) <= _LARGEST_PATCH


def input_of_call(arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> Tensor:
    """Return the input of a call of a layer."""
    return arguments[0] if arguments else keywords["input"]


def samples_of(layer: Layer, inputs: Tensor) -> Tensor:
    """Return the inputs of a layer as samples (g, positions, n): patches, or channels only.

    `inputs` is (N, S, H, W) for a convolution, (..., S D_h D_w) for a linear layer.
    """
    inputs = inputs.float()
    if layer.kind == "linear":
        # A flattened map is one patch. Axes before the channels, such as tokens, are samples.
        inputs = inputs.reshape(-1, layer.in_channels, *layer.kernel)
    # (N, g, S / g D^2, positions); for channels only, each patch counts as D^2 positions.
    patches = _patches(inputs, layer).unflatten(1, (layer.groups, -1))
    if not _has_patches(layer):
        patches = patches.unflatten(2, (-1, prod(layer.kernel))).flatten(3)
    return patches.permute(1, 0, 3, 2).flatten(1, 2)


def _patches(inputs: Tensor, layer: Layer) -> Tensor:
    """Return patches at positions spread over the map: (N, S, H, W) -> (N, S D^2, positions)."""
    if layer.kind == "linear":
        return inputs.flatten(1)[:, :, None]
    # Use every q-th position along each axis, starting in the middle of the first q positions.
    # Starting at the first position would give too much weight to the edges of the map.
    height, width = inputs.shape[2:]
    steps = _steps(*layer.output_map((height, width)))
    strides = tuple(stride * q for stride, q in zip(layer.stride, steps, strict=True))
    top, left = (stride * (q // 2) for stride, q in zip(layer.stride, steps, strict=True))
    vertical, horizontal = layer.padding
    if vertical or horizontal:
        inputs = functional.pad(inputs, (horizontal, horizontal, vertical, vertical))
    if layer.kernel == (1, 1):
        # The same values as below, without a copy of the whole map.
        return inputs[:, :, top :: strides[0], left :: strides[1]].flatten(2).contiguous()
    return functional.unfold(
        inputs[:, :, top:, left:], layer.kernel, layer.dilation, stride=strides
    )


def _steps(height: int, width: int) -> tuple[int, int]:
    """Return the distance between the positions along each axis of a map of this size."""
    return tuple(  # type: ignore[return-value]
        ceil(size / (_POSITIONS // min(other, isqrt(_POSITIONS))))
        for size, other in ((height, width), (width, height))
    )
