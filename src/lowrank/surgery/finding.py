"""Finding the layers of a network that a factorization may replace."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import Layer, LayerTable, Pair
from lowrank.surgery.watching import FlattenedMaps, Map, StandIn, standing_in
from lowrank.zoo.creation import create
from lowrank.zoo.forward import output_for_zeros

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


def layer_table(network: str | NetworkSource, name: str | None = None) -> LayerTable:
    """The layers of a network that is built anew; `name` is the table's, the network's by default.

    Raises UserError as `lowrank.zoo.creation.create` does.
    """
    spec, module = create(NetworkSource.parse(network) if isinstance(network, str) else network)
    return find_layers(module, spec.input_shape, name or spec.name)


def find_layers(network: nn.Module, input_shape: tuple[int, int, int], name: str) -> LayerTable:
    """The convolutions and linear layers of a network, in forward order, no weights.

    The order and the maps are those of one forward pass on a single image of `input_shape`
    (channels, height, width), in evaluation mode. A layer whose forward() is not called then is
    left out: an auxiliary head, or a projection of which attention takes the weight alone. A linear
    layer whose input is a flattened map of more than one pixel is described as a convolution by
    a kernel of that map's size. The network is left as it was.

    Raises UserError when the network cannot take such an image.
    """
    names = {module: path for path, module in network.named_modules() if path}
    maps = FlattenedMaps()
    found: dict[StandIn, Layer] = {}

    def note(stand_in: StandIn, inputs: Tensor) -> None:
        layer = stand_in.layer
        if stand_in not in found:
            found[stand_in] = _described(names[layer], layer, inputs, maps.shape_before(inputs))

    layers = [module for module in names if isinstance(module, _KINDS)]
    hooked = {layer for layer in layers if _has_hooks(layer)}
    with standing_in(network, [StandIn(layer, note) for layer in layers]), maps:
        output_for_zeros(network, input_shape, name)
    sharing = _Sharing(network)
    return LayerTable(
        name,
        tuple(input_shape),
        tuple(
            replace(
                layer,
                not_factored=_obstacle(stand_in.layer, hooked=stand_in.layer in hooked)
                or sharing.obstacle(stand_in),
            )
            for stand_in, layer in found.items()
        ),
    )


def _described(name: str, module: nn.Module, inputs: Tensor, flattened: Map | None) -> Layer:
    if isinstance(module, nn.Linear):
        channels, *window = flattened or (module.in_features, 1, 1)
        # For one image a linear layer is applied to each vector of its input, whatever its axes.
        positions = (inputs.numel() // module.in_features, 1)
        return Layer(
            name=name,
            kind="linear",
            in_channels=channels,
            out_channels=module.out_features,
            kernel=tuple(window),
            bias=module.bias is not None,
            input_map=tuple(window) if prod(window) > 1 else positions,
        )
    layer = Layer(
        name=name,
        kind="transposed_conv" if isinstance(module, _TRANSPOSED) else "conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        groups=module.groups,
        bias=module.bias is not None,
    )
    size = tuple(inputs.shape[-len(module.kernel_size) :])
    before, after = _padding(module)
    if len(size) != 2:
        return _laid_flat(layer, module, size)
    # A layer that pads one side more takes no factors: its padding counts as part of the map.
    uneven = [b - a for a, b in zip(before, after, strict=True)]
    return replace(
        layer,
        kernel=module.kernel_size,
        stride=module.stride,
        padding=before,
        dilation=module.dilation,
        input_map=tuple(length + more for length, more in zip(size, uneven, strict=True)),
    )


def _laid_flat(layer: Layer, module: nn.Module, size: tuple[int, ...]) -> Layer:
    """A convolution over one or three axes, which no factorization takes, as one over two.

    All axes but the first become one; parameters and MACs are those of the module.
    """
    kernel = _paired(module.kernel_size)
    if layer.kind == "transposed_conv":
        return replace(layer, kernel=kernel, input_map=_paired(size))
    geometry = zip(
        size, *_padding(module), module.dilation, module.kernel_size, module.stride, strict=True
    )
    outputs = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, d, k, s in geometry]
    # Without padding, the outputs of a map that is larger by one window less one.
    map_ = tuple(o + k - 1 for o, k in zip(_paired(outputs), kernel, strict=True))
    return replace(layer, kernel=kernel, input_map=map_)


def _paired(lengths: Iterable[int]) -> Pair:
    first, *others = lengths
    return first, prod(others)


def _padding(module: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding in pixels before and after the map, along each axis."""
    if not isinstance(module.padding, str):
        return tuple(module.padding), tuple(module.padding)
    if module.padding == "valid":
        nothing = (0,) * len(module.kernel_size)
        return nothing, nothing
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    before = tuple(total // 2 for total in totals)
    return before, tuple(t - b for t, b in zip(totals, before, strict=True))


def _obstacle(module: nn.Module, *, hooked: bool) -> str | None:
    """Why no factors can do what the layer does, from the layer alone."""
    base = next(kind for kind in _KINDS if isinstance(module, kind))
    if not _computes_as(module, base):
        return f"its class {type(module).__name__} changes what {base.__name__} computes"
    if "weight" not in module._parameters:
        return "its weight is computed from other tensors, as in weight normalisation"
    if hooked:
        return "it has hooks, which its factors would lose"
    if base is nn.Linear:
        return None
    if base in _TRANSPOSED:
        return "a transposed convolution"
    if base is not nn.Conv2d:
        return f"a convolution over {'one axis' if base is nn.Conv1d else 'three axes'}"
    if module.padding_mode != "zeros":
        return f"pads with '{module.padding_mode}', factors would have to pad twice"
    before, after = _padding(module)
    if before != after:
        return "pads one side more than the other"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise: one input channel to a group leaves nothing to factor"
    return None


def _has_hooks(module: nn.Module) -> bool:
    # A lazy layer removes its own hooks once it has weights.
    hooks = (*module._forward_hooks, *module._forward_pre_hooks)
    return bool(hooks) and not isinstance(module, LazyModuleMixin)


def _computes_as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether nothing between a module and a class of PyTorch's overrides the computation."""
    names = [name for name in ("forward", "_conv_forward") if hasattr(base, name)]
    return all(
        name not in vars(module) and getattr(type(module), name) is getattr(base, name)
        for name in names
    )


class _Sharing:
    """Who else in a network has to do with a layer."""

    def __init__(self, network: nn.Module) -> None:
        # More than one name for a module, more than one module for a weight.
        self._names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
        self._holders = Counter(
            id(tensor) for module in network.modules() for tensor in module._parameters.values()
        )

    def obstacle(self, stand_in: StandIn) -> str | None:
        """Why factors cannot take the place of a layer that has nothing against them itself."""
        layer = stand_in.layer
        if self._names[layer] > 1:
            return f"it stands in {self._names[layer]} places of the network"
        if stand_in.calls > 1:
            return f"it is used {stand_in.calls} times in one forward pass"
        if self._holders[id(layer.weight)] > 1:
            return "another layer shares its weight"
        if stand_in.asked_for:
            asked_for = ", ".join(f"`{name}`" for name in sorted(stand_in.asked_for))
            return f"the network reads its {asked_for}, which factors do not have"
        return None
