"""Finding the layers of a network that a factorization may replace."""

import torch
from torch import Tensor, nn

from lowrank.networks.registry import create_network, network_spec
from lowrank.plan import Layer, LayerTable, Pair


def layer_table(name: str) -> LayerTable:
    """The layers of a registered network. Raises UserError for an unknown name."""
    return find_layers(create_network(name), network_spec(name).input_shape, name)


def find_layers(network: nn.Module, input_shape: tuple[int, int, int], name: str) -> LayerTable:
    """The convolutions and linear layers of a network, in forward order, no weights.

    The order and the maps are those of one forward pass on a single image of `input_shape`
    (channels, height, width). The network is left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    names = {module: path for path, module in network.named_modules()}
    found: dict[str, Layer] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer = _described(names[module], module, inputs[0])
        found.setdefault(layer.name, layer)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in names
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *input_shape, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    return LayerTable(name, tuple(input_shape), tuple(found.values()))


def _described(name: str, module: nn.Module, inputs: Tensor) -> Layer:
    if isinstance(module, nn.Linear):
        positions = inputs.shape[1:-1].numel()
        return Layer(
            name=name,
            kind="linear",
            in_channels=module.in_features,
            out_channels=module.out_features,
            bias=module.bias is not None,
            input_map=(positions, 1),
        )
    before, after = _padding(module)
    # A layer that pads one side more takes no factors: its padding counts as part of the map.
    uneven = [b - a for a, b in zip(before, after, strict=True)]
    return Layer(
        name=name,
        kind="transposed_conv" if isinstance(module, nn.ConvTranspose2d) else "conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=module.kernel_size,
        stride=module.stride,
        padding=before,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
        input_map=tuple(size + more for size, more in zip(inputs.shape[-2:], uneven, strict=True)),
        not_factored=_obstacle(module, uneven=any(uneven)),
    )


def _obstacle(module: nn.Module, *, uneven: bool) -> str | None:
    if isinstance(module, nn.ConvTranspose2d):
        return "a transposed convolution"
    if module.padding_mode != "zeros":
        return f"pads with '{module.padding_mode}', factors would have to pad twice"
    if uneven:
        return "pads one side more than the other"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise: one input channel to a group leaves nothing to factor"
    return None


def _padding(module: nn.Module) -> tuple[Pair, Pair]:
    """Padding in pixels before and after the map, each as (height, width)."""
    if not isinstance(module.padding, str):
        return tuple(module.padding), tuple(module.padding)
    if module.padding == "valid":
        return (0, 0), (0, 0)
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    before = tuple(total // 2 for total in totals)
    return before, tuple(t - b for t, b in zip(totals, before, strict=True))
