"""Feature maps inside a network, for a compressed network to learn from as well as from logits."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.registry import NetworkSpec

# (N, C, H, W) by the layer whose input it is.
Maps = dict[str, Tensor]

# A larger map is averaged down to this height and width: what is stored for an image stays small
# whatever the size of the input.
_LARGEST_SIDE = 4


class WatchedMaps:
    """Keeps the inputs of some layers, averaged down to at most 4 x 4, from each forward pass.

    A decomposed layer has the name of the layer that it replaces, so the same names work for the
    original and for the compressed network.

    Parameters
    ----------
    layers
        Names of modules of `network`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self._maps: Maps = {}
        self._hooks = [
            network.get_submodule(layer).register_forward_pre_hook(self._keep(layer))
            for layer in layers
        ]

    def _keep(self, layer: str) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._maps[layer] = _pooled(inputs[0])

        return keep

    def take(self) -> Maps:
        """Return the maps of the last forward pass, and forget them."""
        maps, self._maps = self._maps, {}
        return maps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def layers_to_watch(
    network: nn.Module,
    spec: NetworkSpec,
    *,
    count: int = 2,
    images: int = 0,
    largest_bytes: int = 0,
) -> list[str]:
    """Name the convolutions whose inputs are compared: the first of each resolution to run.

    Their inputs are what a whole stage of the network computes. Maps of one pixel are left out,
    because the logits show as much, and so are those of the image's own size.

    Parameters
    ----------
    count
        How many layers, those with the smallest maps first.
    images, largest_bytes
        Fewer layers where the maps of so many images, in float16, need more bytes.
    """
    shapes: dict[str, torch.Size] = {}

    def note(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs:
            shapes.setdefault(name, inputs[0].shape)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        output_for_zeros(network, spec.input_shape, spec.name)
    finally:
        for hook in hooks:
            hook.remove()
    _, height, width = spec.input_shape
    first_of: dict[tuple[int, int], str] = {}
    for layer, shape in shapes.items():
        if len(shape) == 4 and 1 < shape[2] * shape[3] < height * width:
            first_of.setdefault((shape[2], shape[3]), layer)
    chosen: list[str] = []
    free = largest_bytes
    for size in sorted(first_of, key=math.prod)[:count]:
        layer = first_of[size]
        free -= 2 * images * shapes[layer][1] * math.prod(min(n, _LARGEST_SIDE) for n in size)
        if free < 0:
            break
        chosen.append(layer)
    return chosen


def _pooled(map_: Tensor) -> Tensor:
    height, width = (min(size, _LARGEST_SIDE) for size in map_.shape[2:])
    if (height, width) == tuple(map_.shape[2:]):
        return map_
    return functional.adaptive_avg_pool2d(map_, (height, width))
