"""Mean and covariance of layers' inputs on real images."""

from collections.abc import Iterable
from contextlib import suppress
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.core.layers import Layer
from lowrank.errors import UserError
from lowrank.factorize import Moments, Shift
from lowrank.zoo.forward import evaluation_mode

# Places of a map along each axis that an image adds to the moment: neighbours say nearly the same.
_PLACES = 8

# Larger patches are not followed: the moment of the channels alone takes their place. In float32,
# one of this size takes 85 MB.
_LARGEST_PATCH = 4608


@torch.no_grad()
def input_moments(
    network: nn.Module, layers: Iterable[Layer], batches: Iterable[Tensor]
) -> dict[str, Moments]:
    """Mean and covariance of the inputs of each layer, by name.

    Parameters
    ----------
    network
        Run in evaluation mode, and left in the mode it was in.
    layers
        Layers of its table that its forward pass calls.
    batches
        Images as the network takes them, (N, C, H, W). Labels are not needed.

    Raises
    ------
    UserError
        Without a single image.
    """
    sums = {layer.name: _Sums(layer) for layer in layers}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(each.add_call, with_kwargs=True)
        for name, each in sums.items()
    ]
    try:
        with evaluation_mode(network):
            for images in batches:
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: each.moments() for name, each in sums.items()}


@torch.no_grad()
def shifted_moments(
    original: nn.Module, network: nn.Module, layer: Layer, batches: Iterable[Tensor]
) -> tuple[Moments, Shift]:
    """Moments of one layer's inputs in a network, and how they moved from those in the original.

    Parameters
    ----------
    original
        Run over the same images as the network, both in evaluation mode.
    network
        The same with other layers replaced.
    layer, batches
        As for `input_moments`, and UserError likewise.
    """
    sums, now, before = _Sums(layer), _Inputs(layer), _Inputs(layer)
    first, crossed = torch.zeros_like(sums.first), torch.zeros_like(sums.second)
    pilot = None
    hooks = [
        each.get_submodule(layer.name).register_forward_pre_hook(keep, with_kwargs=True)
        for each, keep in ((original, before.keep), (network, now.keep))
    ]
    try:
        with evaluation_mode(original), evaluation_mode(network):
            for images in batches:
                for each in (original, network):
                    with suppress(_Reached):
                        each(images)
                sums.add(now.samples)
                pilot = before.samples.mean(1, keepdim=True) if pilot is None else pilot
                shifted = before.samples - pilot
                first += shifted.sum(1).cpu()
                crossed += (shifted.mT @ (now.samples - sums.pilot)).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    moments = sums.moments()
    first /= moments.samples
    mean = torch.from_numpy(moments.mean) - sums.pilot.squeeze(1).cpu()
    _minus_product(crossed.div_(moments.samples), first, mean)
    first += pilot.squeeze(1).cpu()
    return moments, Shift(first.numpy(), crossed.numpy())


class _Reached(Exception):  # noqa: N818  (no error)
    """A pass has come to the layer in question; what follows is not needed."""


class _Inputs:
    """What a layer was last called with, at which a pass ends."""

    samples: Tensor

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def keep(
        self, module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """What the layer is about to be called with. Raises _Reached."""
        self.samples = _samples(self._layer, arguments, keywords)
        raise _Reached


class _Sums:
    """The sums of one layer's input patches and of their products."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        channels = layer.in_channels // layer.groups
        size = channels * prod(layer.kernel) if _has_patches(layer) else channels
        self._count = 0
        # About the mean, so that products in float32 do not cancel where it is far from 0.
        self.pilot: Tensor | None = None
        self.first = torch.zeros(layer.groups, size, dtype=torch.float64)
        self.second = torch.zeros(layer.groups, size, size)

    def add_call(
        self, module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """What the layer is about to be called with."""
        self.add(_samples(self._layer, arguments, keywords))

    def add(self, samples: Tensor) -> None:
        """Samples (g, places, n)."""
        if self.pilot is None:
            self.pilot = samples.mean(1, keepdim=True)
        samples = samples - self.pilot
        self._count += samples.shape[1]
        self.first += samples.sum(1).cpu()
        self.second += _products(samples)

    def moments(self) -> Moments:
        """Over all that was seen."""
        if not self._count:
            raise UserError(
                f"no image reached layer '{self._layer.name}': moments need at least one image."
            )
        mean, second = (sums.div_(self._count) for sums in (self.first, self.second))
        # In place: of a wide layer there is no room for another one.
        covariance = _minus_product(second, mean, mean)
        mean += self.pilot.squeeze(1).cpu()
        return Moments(mean.numpy(), covariance.numpy(), self._count)


def _products(samples: Tensor) -> Tensor:
    """Sums over the places of samples (g, places, n): (g, n, n), in main memory."""
    if samples.device.type != "cpu":
        return (samples.mT @ samples).cpu()
    # NumPy sees that both matrices are one and works out half of the products (BLAS syrk).
    matrix = samples.numpy()
    return torch.from_numpy(matrix.swapaxes(1, 2) @ matrix)


def _minus_product(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(g, n, n) in place less the product of two means (g, n)."""
    return products.baddbmm_(left[:, :, None].float(), right[:, None].float(), alpha=-1)


def _has_patches(layer: Layer) -> bool:
    """Whether a layer's patches are followed, or its channels alone."""
    return layer.in_channels // layer.groups * prod(layer.kernel) <= _LARGEST_PATCH


def _samples(layer: Layer, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> Tensor:
    """What a layer is called with: (g, places, n), patches or channels alone."""
    inputs = (arguments[0] if arguments else keywords["input"]).float()
    if layer.kind == "linear":
        # Of a flattened map, the map is the patch. Tokens in front of the channels are samples.
        inputs = inputs.reshape(-1, layer.in_channels, *layer.kernel)
    # (N, g, S / g D^2, places), or D^2 places for each of the channels alone
    patches = _patches(inputs, layer).unflatten(1, (layer.groups, -1))
    if not _has_patches(layer):
        patches = patches.unflatten(2, (-1, prod(layer.kernel))).flatten(3)
    return patches.permute(1, 0, 3, 2).flatten(1, 2)


def _patches(inputs: Tensor, layer: Layer) -> Tensor:
    """What the window sees at places spread over the map: (N, S, H, W) -> (N, S D^2, places)."""
    if layer.kind == "linear":
        return inputs.flatten(1)[:, :, None]
    # Every q-th place along each axis, from the middle of the first q on: were it the first, the
    # map's edges would count for more than they are.
    every = [ceil(size / _PLACES) for size in layer.output_map(tuple(inputs.shape[2:]))]
    vertical, horizontal = layer.padding
    inputs = functional.pad(inputs, (horizontal, horizontal, vertical, vertical))
    strides = [stride * q for stride, q in zip(layer.stride, every, strict=True)]
    top, left = (stride * (q // 2) for stride, q in zip(layer.stride, every, strict=True))
    return functional.unfold(
        inputs[:, :, top:, left:], layer.kernel, layer.dilation, stride=strides
    )
