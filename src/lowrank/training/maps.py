"""Feature maps inside a network, which distillation compares in addition to logits."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.registry import NetworkSpec

# Feature maps (N, C, H, W) by layer name; each map is the input of that layer.
Maps = dict[str, Tensor]

# Larger maps are averaged down to this height and width, so that the stored size per image does not
# depend on the input size.
_LARGEST_SIDE = 4


class WatchedMaps:
    """Recorder of the inputs of some layers, averaged down to at most 4 x 4, in each forward pass.

    A decomposed layer keeps the name of the layer that it replaces, so the same names work for the
    original and the compressed network.

    Parameters
    ----------
    network
        Network to record.
    layers
        Names of modules of `network`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self._maps: Maps = {}
        self._hooks = [
            network.get_submodule(layer).register_forward_pre_hook(self._recorder(layer))
            for layer in layers
        ]

    def _recorder(self, layer: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._maps[layer] = _pooled(inputs[0])

        return record

    def take(self) -> Maps:
        """Return the maps of the last forward pass and delete them here."""
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
    """Return the names of convolutions whose inputs are compared: the first of each resolution.

    The input of such a convolution is the output of a complete stage of the network. Maps of one
    pixel are excluded, because the logits contain the same information. Maps of the image size are
    excluded too. There are none in a network that takes no images.

    Parameters
    ----------
    network
        Network to search.
    spec
        Specification of its input.
    count
        Number of layers; layers with the smallest maps come first.
    images, largest_bytes
        Limit on storage: fewer layers are returned if the maps of `images` images in float16 need
        more than `largest_bytes`.
    """
    if spec.forms:
        return []  # Only images have maps of several resolutions.
    shapes: dict[str, torch.Size] = {}

    def record_shape(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs:
            shapes.setdefault(name, inputs[0].shape)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: record_shape(name, inputs))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        output_for_zeros(network, spec.input_shape, spec.name)
    finally:
        for hook in hooks:
            hook.remove()
    height, width = spec.input_shape[1:]
    first_layers: dict[tuple[int, int], str] = {}
    for layer, shape in shapes.items():
        if len(shape) == 4 and 1 < shape[2] * shape[3] < height * width:
            first_layers.setdefault((shape[2], shape[3]), layer)
    chosen: list[str] = []
    free_bytes = largest_bytes
    for size in sorted(first_layers, key=math.prod)[:count]:
        layer = first_layers[size]
        stored_pixels = math.prod(min(side, _LARGEST_SIDE) for side in size)
        free_bytes -= 2 * images * shapes[layer][1] * stored_pixels
        if free_bytes < 0:
            break
        chosen.append(layer)
    return chosen


def _pooled(feature_map: Tensor) -> Tensor:
    height, width = (min(size, _LARGEST_SIDE) for size in feature_map.shape[2:])
    if (height, width) == tuple(feature_map.shape[2:]):
        return feature_map
    return functional.adaptive_avg_pool2d(feature_map, (height, width))
