"""Finding the layers of a network that a factorization may replace."""

import torch
from torch import Tensor, nn

from lowrank.networks.registry import create_network, network_spec
from lowrank.plan import Layer, LayerTable, Pair


def layer_table(name: str) -> LayerTable:
    """The convolutions and linear layers of a registered network, in forward order, no weights.

    The order and the maps are those of one forward pass on a single image.
    """
    spec = network_spec(name)
    network = create_network(name).eval()
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
    with torch.inference_mode():
        network(torch.zeros(1, *spec.input_shape))
    for hook in hooks:
        hook.remove()
    return LayerTable(spec.name, spec.input_shape, tuple(found.values()))


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
    padding = _padding(module)
    return Layer(
        name=name,
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=module.kernel_size,
        stride=module.stride,
        padding=padding or (0, 0),
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
        input_map=tuple(inputs.shape[-2:]),
        not_factored=_obstacle(module, padding),
    )


def _obstacle(module: nn.Module, padding: Pair | None) -> str | None:
    if isinstance(module, nn.ConvTranspose2d):
        return "a transposed convolution"
    if module.padding_mode != "zeros":
        return f"pads with '{module.padding_mode}', factors would have to pad twice"
    if padding is None:
        return "pads one side more than the other"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise: one input channel to a group leaves nothing to factor"
    return None


def _padding(module: nn.Module) -> Pair | None:
    """Padding in pixels on either side; None where the sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0, 0)
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(t % 2 for t in totals) else (totals[0] // 2, totals[1] // 2)
