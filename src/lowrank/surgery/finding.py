"""Find the layers of a network that a factorization can replace."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import Layer, LayerTable, Pair, with_feeders
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.surgery.feeding import Feeding
from lowrank.surgery.watching import FlattenedMaps, Map, Proxy, calls_watched, proxies_in_place
from lowrank.zoo.attention import whole_attention
from lowrank.zoo.creation import create
from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.onnx_file import OnnxFile
from lowrank.zoo.registry import InputForm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
# The base class of convolutions declares their attributes, for each number of axes.
_Convolution = nn.modules.conv._ConvNd


def layer_table(network: str | NetworkSource, name: str | None = None) -> LayerTable:
    """Build a network and return its layer table.

    `name` is the network name in the table, by default the name in its specification. Raises
    UserError in the same cases as `lowrank.zoo.creation.create`.
    """
    source = NetworkSource.parse(network) if isinstance(network, str) else network
    if source.onnx:
        return OnnxFile.read(source).table(name or source.label)
    spec, module = create(source)
    return find_layers(module, spec.input_shape, name or spec.name, spec.forms)


def find_layers(
    network: nn.Module,
    input_shape: tuple[int, ...],
    name: str,
    forms: Sequence[InputForm] = (),
) -> LayerTable:
    """Return a table of the convolutions and linear layers of a network, in forward order.

    The order and the map sizes come from one forward pass on a single image of `input_shape`
    (channels, height, width), or on one sample of inputs of these forms, in evaluation mode. Layers
    whose forward() is not called are not included, such as auxiliary heads. An exception is the
    output projection of attention that `lowrank.zoo.plain.fold` leaves as it is: it is included
    with the reason. A linear layer whose input is a flattened map of more than one pixel is
    described as a convolution with a kernel of the size of that map. The network is not changed.

    The layers of an ONNX file are those of its graph.

    Raises UserError if the network does not accept such an input.
    """
    if isinstance(network, GraphModule):
        return LayerTable(name, input_shape, tuple(site.layer for site in network.origin.sites))
    names = {module: path for path, module in network.named_modules() if path}
    maps, feeding = FlattenedMaps(), Feeding()
    described: dict[Proxy, Layer] = {}

    def describe_once(proxy: Proxy, inputs: Tensor, outputs: Any = None) -> None:
        layer = proxy.layer
        feeding.called(layer, inputs, outputs)
        if proxy not in described:
            shape = maps.shape_before_flattening(inputs)
            described[proxy] = _described(names[layer], layer, inputs, shape)

    def describe_output_projection(attention: nn.Module, query: Tensor) -> None:
        if isinstance(attention.out_proj, Proxy):
            describe_once(attention.out_proj, query)

    layers = [module for module in names if isinstance(module, _KINDS)]
    hooked = {layer for layer in layers if _has_hooks(layer)}
    whole = whole_attention(network)
    reasons: dict[nn.Module, str] = {module.out_proj: reason for module, reason in whole.items()}
    with (
        calls_watched(whole, "query", describe_output_projection),
        proxies_in_place(network, [Proxy(layer, describe_once) for layer in layers]),
        maps,
        feeding,
    ):
        outputs = output_for_zeros(network, input_shape, name, forms)
    usage = _Usage(network)
    layers_found = [
        replace(
            layer,
            not_factored=_obstacle(proxy.layer, hooked=proxy.layer in hooked)
            or (None if proxy.calls else reasons.get(proxy.layer))
            or usage.obstacle(proxy),
        )
        for proxy, layer in described.items()
    ]
    feeders = {names[a]: names[b] for a, b in feeding.feeders(outputs).items()}
    added = {names[layer] for layer in feeding.added()}
    return LayerTable(name, tuple(input_shape), with_feeders(layers_found, feeders, added))


def _described(name: str, module: nn.Module, inputs: Tensor, flattened: Map | None) -> Layer:
    if isinstance(module, nn.Linear):
        channels, height, width = flattened or (module.in_features, 1, 1)
        # For one image, a linear layer is applied to each vector of its input, over all axes.
        positions = (inputs.numel() // module.in_features, 1)
        return Layer(
            name=name,
            kind="linear",
            in_channels=channels,
            out_channels=module.out_features,
            kernel=(height, width),
            bias=module.bias is not None,
            input_map=(height, width) if height * width > 1 else positions,
        )
    if not isinstance(module, _Convolution):
        raise TypeError(f"{name}: expected a convolution or a linear layer, found {type(module)}")
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
        return _as_two_axes(layer, module, size)
    # A layer with asymmetric padding is not factored. Its extra padding counts as part of the map.
    extra_padding = [b - a for a, b in zip(before, after, strict=True)]
    return replace(
        layer,
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_pair(before),
        dilation=_pair(module.dilation),
        input_map=_pair(length + extra for length, extra in zip(size, extra_padding, strict=True)),
    )


def _as_two_axes(layer: Layer, module: _Convolution, size: tuple[int, ...]) -> Layer:
    """Describe a convolution over one or three axes as a convolution over two axes.

    No factorization supports such layers. All axes except the first are merged into one, so that
    parameters and MACs equal those of the module.
    """
    kernel = _merged(module.kernel_size)
    if layer.kind == "transposed_conv":
        return replace(layer, kernel=kernel, input_map=_merged(size))
    geometry = zip(
        size, *_padding(module), module.dilation, module.kernel_size, module.stride, strict=True
    )
    outputs = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, d, k, s in geometry]
    # Choose the map that results in these outputs without padding.
    input_map = _pair(o + k - 1 for o, k in zip(_merged(outputs), kernel, strict=True))
    return replace(layer, kernel=kernel, input_map=input_map)


def _pair(lengths: Iterable[int]) -> Pair:
    first, second = lengths
    return first, second


def _merged(lengths: Iterable[int]) -> Pair:
    first, *others = lengths
    return first, prod(others)


def _padding(module: _Convolution) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding in pixels before and after the map, along each axis."""
    if not isinstance(module.padding, str):
        return tuple(module.padding), tuple(module.padding)
    if module.padding == "valid":
        zeros = (0,) * len(module.kernel_size)
        return zeros, zeros
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    before = tuple(total // 2 for total in totals)
    return before, tuple(t - b for t, b in zip(totals, before, strict=True))


def _obstacle(module: nn.Module, *, hooked: bool) -> str | None:
    """Return why factors cannot replace a layer, judging by the layer itself, or None."""
    base = next(kind for kind in _KINDS if isinstance(module, kind))
    if not _computes_as(module, base):
        return f"its class {type(module).__name__} changes what {base.__name__} computes"
    if "weight" not in module._parameters:
        return "its weight is computed from other tensors, as in weight normalization"
    if hooked:
        return "it has hooks, which its factors would not have"
    if base is nn.Linear:
        return None
    if base in _TRANSPOSED:
        return "a transposed convolution"
    if not isinstance(module, nn.Conv2d):
        return f"a convolution over {'one axis' if base is nn.Conv1d else 'three axes'}"
    if module.padding_mode != "zeros":
        return f"padding mode '{module.padding_mode}': its factors would have to pad twice"
    before, after = _padding(module)
    if before != after:
        return "asymmetric padding"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise: with one input channel per group, there is nothing to factor"
    return None


def _has_hooks(module: nn.Module) -> bool:
    # A lazy layer removes its own hooks when its weights are created.
    hooks = (*module._forward_hooks, *module._forward_pre_hooks)
    return bool(hooks) and not isinstance(module, LazyModuleMixin)


def _computes_as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Return whether a module computes exactly what its PyTorch base class computes."""
    names = [name for name in ("forward", "_conv_forward") if hasattr(base, name)]
    return all(
        name not in vars(module) and getattr(type(module), name) is getattr(base, name)
        for name in names
    )


class _Usage:
    """Use of layers by the network beyond one forward call: sharing, repeated calls, reads."""

    def __init__(self, network: nn.Module) -> None:
        # Number of names of each module, and number of modules that hold each parameter.
        self._names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
        self._holders = Counter(
            id(tensor) for module in network.modules() for tensor in module._parameters.values()
        )

    def obstacle(self, proxy: Proxy) -> str | None:
        """Return why factors cannot replace a layer, judging by its use in the network, or None."""
        layer = proxy.layer
        if self._names[layer] > 1:
            return f"it occurs in {self._names[layer]} places in the network"
        if proxy.calls > 1:
            return f"it is called {proxy.calls} times in one forward pass"
        if self._holders[id(layer.weight)] > 1:
            return "another layer shares its weight"
        if proxy.attributes_read:
            attributes = ", ".join(f"`{name}`" for name in sorted(proxy.attributes_read))
            return f"the network reads its {attributes}, which factors do not have"
        return None
