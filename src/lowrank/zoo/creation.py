"""Build the network that a `NetworkSource` describes."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank.config.network_source import NetworkSource
from lowrank.core.user_code import called_function, described, imported_function
from lowrank.errors import UserError, unknown_name
from lowrank.tasks.outputs import outputs_from
from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.onnx_file import onnx_network
from lowrank.zoo.plain import fold, in_float32, require_eager, unwrapped
from lowrank.zoo.registry import InputForm, NetworkSpec, network_names, registered
from lowrank.zoo.timm_models import PREFIX as TIMM
from lowrank.zoo.timm_models import timm_network
from lowrank.zoo.torchvision_models import torchvision_names, torchvision_network

_TORCHVISION = "torchvision/"
_OVERRIDES = ("input_shape", "mean", "std", "resize", "interpolation", "channel_order")


def create(source: NetworkSource, *, folded: bool = True) -> tuple[NetworkSpec, nn.Module]:
    """Build a network with fresh weights and return it with its specification.

    The number of classes is read from the logits for one image of zeros; it is 0 if the output is
    not one value for each class. The network is in float32 and without wrappers. With `folded`,
    computed weights (`weight_norm`, pruning masks) and the projections of attention become weights
    of layers: see `lowrank.zoo.plain.fold`.

    Raises
    ------
    UserError
        If the name is unknown; if the factory cannot be imported, does not exist, does not accept
        the arguments, raises, or does not return a `torch.nn.Module`; if the network does not
        accept `input_shape`; if the ONNX file cannot be used; or if the mean or standard deviation
        has another number of channels.
    """
    spec, network = _built(source)
    known = spec.num_classes and not source.arguments and not source.input_shape
    spec = _overridden(spec, source)
    if not known:
        spec = replace(spec, num_classes=_classes(network, spec))
    if folded:
        fold(network)
    return spec, network


def build(
    source: NetworkSource, input_shape: tuple[int, ...], forms: Sequence[InputForm] = ()
) -> nn.Module:
    """Build a network with a known specification and fresh weights.

    Raises UserError in the same cases as `create`.
    """
    network = _built(source)[1]
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        output_for_zeros(network, input_shape, source.label, forms)
    fold(network)
    return network


def _built(source: NetworkSource) -> tuple[NetworkSpec, nn.Module]:
    if source.onnx:
        return onnx_network(source)
    if source.factory and source.input_shape:
        function = imported_function(source.factory, f"factory '{source.factory}'")
        network = _called(function, source.arguments, source.factory)
        if source.takes_images:
            channels = source.input_shape[0]
            spec = NetworkSpec(
                source.factory, source.input_shape, 0, mean=(0.0,) * channels, std=(1.0,) * channels
            )
            return spec, network
        form = InputForm("inputs", source.input_shape, source.input_type or "float32")
        return NetworkSpec.of_forms(source.factory, (form,)), network
    name = source.label
    if name in network_names():
        spec, function = registered(name)
        return spec, _called(function, source.arguments, name)
    if name.startswith(TIMM):
        return timm_network(name.removeprefix(TIMM), source.arguments)
    known = torchvision_names()
    if (bare := name.removeprefix(_TORCHVISION)) in known:
        return torchvision_network(bare, source.arguments, source.torchvision_weights)
    # If a shipped network is similar, list only shipped ones: eighty more names would hide it.
    shipped = network_names()
    similar = difflib.get_close_matches(name, shipped, n=1)
    raise unknown_name("network", name, shipped if similar else {*shipped, *known})


def _called(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> nn.Module:
    network = called_function(function, arguments, f"network '{name}'")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"network '{name}': its function returns {described(network)}, expected a "
            "torch.nn.Module. Change the function so that it returns the network, with the same "
            "layers as the checkpoint."
        )
    network = unwrapped(network)
    require_eager(network, name)
    return in_float32(network)


def _overridden(spec: NetworkSpec, source: NetworkSource) -> NetworkSpec:
    """Return the specification with the settings of the source, where it has any."""
    overrides = {
        key: getattr(source, key) for key in _OVERRIDES if getattr(source, key) is not None
    }
    if spec.forms:
        if for_images := sorted(overrides.keys() - {"input_shape"}):
            raise UserError(
                f"network '{spec.name}': `{for_images[0]}` is for images, but this network takes "
                f"{', '.join(map(str, spec.forms))} as they are. Remove it."
            )
        return spec
    if source.input_shape is not None:
        # Do not keep a resize for another input size: it would crop too much or too little.
        overrides.setdefault("resize", None)
    if not overrides:
        return spec
    spec = replace(spec, **overrides)
    channels, *size = spec.input_shape
    for name in ("mean", "std"):
        if len(values := getattr(spec, name)) != channels:
            raise UserError(
                f"network '{spec.name}': `{name}` has {len(values)} values {values}, but its "
                f"images have {channels} channels. Set one value for each channel."
            )
    if spec.resize and spec.resize < min(size):
        raise UserError(
            f"network '{spec.name}': `resize` is {spec.resize} pixels, expected at least the "
            f"shorter side of `input_shape` ({min(size)}). The crop cannot be larger than the "
            "resized image."
        )
    return spec


def _classes(network: nn.Module, spec: NetworkSpec) -> int:
    """Return the number of classes; 0 if the output is not one value for each class."""
    logits = output_for_zeros(network, spec.input_shape, spec.name, spec.forms)
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == 1:
        return logits.shape[1]
    try:
        outputs_from(logits)
    except TypeError as error:
        raise UserError(
            f"network '{spec.name}': in evaluation mode its forward() returns "
            f"{described(logits)}; expected a tensor, or several tensors as a tuple or a "
            "dictionary. Wrap the network in a module that returns its outputs."
        ) from error
    return 0
