"""Check that a network computes the same outputs with lossless factors in place of its layers.

A replaced layer is another module: it is not an `nn.Conv2d` and has no `weight`. If forward()
depends on such attributes, the outputs change at any rank. So each network runs on a few images
with every layer replaced at full rank, where factors are exact. Bisection then finds the layers
that change the outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from lowrank.core.layers import Layer, LayerTable, PlainLayer
from lowrank.errors import UserError
from lowrank.surgery.states import replace_layer
from lowrank.zoo.forward import evaluation_mode, reason_of

# Images on which the outputs are compared.
IMAGES = 8


@dataclass(frozen=True)
class Outcome:
    """Result of running a network with replaced layers: the change of its outputs, or an error.

    `change` is relative: the norm of the difference divided by the norm of the original outputs.
    """

    change: float
    error: str | None = None


@torch.no_grad()
def layers_that_must_stay(
    network: nn.Module,
    table: LayerTable,
    images: Any,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, str]:
    """Find layers that factors cannot replace without changing the outputs of the network.

    Parameters
    ----------
    network
        Network to check, in evaluation mode. It is not changed.
    table
        Layers of the network. Layers that cannot be factored are skipped.
    images
        Real images, (N, C, H, W), or other inputs, as the network expects them.
    say
        Called with a message about each layer that must stay, with the reason.

    Returns
    -------
    dict
        Reasons by layer name.

    Raises
    ------
    UserError
        If the outputs for the same images differ between two runs, because then outputs cannot be
        compared.
    """
    layers = [layer for layer in table.layers if not layer.not_factored]
    check = _Check(network, images, table.network)
    bisection = _Bisection(network, layers, check, say)
    try:
        with evaluation_mode(network):
            check.remember()
            bisection.replace(layers)
    finally:
        bisection.restore(layers)
    return bisection.reasons


class _Bisection:
    """Search for the layers whose replacement changes the outputs; `reasons` says why, by name."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        check: "_Check",
        say: Callable[[str], object],
    ) -> None:
        self._network, self._check, self._say = network, check, say
        self._originals = {layer.name: network.get_submodule(layer.name) for layer in layers}
        self.reasons: dict[str, str] = {}

    def replace(self, group: Sequence[Layer]) -> None:
        """Replace the layers of a group, except layers that change the outputs."""
        if not group:
            return
        for layer in group:
            _replace_losslessly(self._network, layer)
        outcome = self._check.outcome()
        if outcome.error is None and outcome.change <= self._check.tolerance:
            return
        self.restore(group)
        if len(group) == 1:
            name = group[0].name
            self.reasons[name] = _reason(outcome)
            self._say(f"{name} stays as it is: {self.reasons[name]}")
            return
        middle = len(group) // 2
        self.replace(group[:middle])
        self.replace(group[middle:])

    def restore(self, layers: Sequence[Layer]) -> None:
        """Put the original layers back into the network."""
        for layer in layers:
            self._network.set_submodule(layer.name, self._originals[layer.name])


def _reason(outcome: Outcome) -> str:
    if outcome.error:
        return f"with factors in its place, the network fails: {outcome.error}"
    return (
        f"exact factors change the network's outputs by {outcome.change:.1%}: forward() depends "
        "on the type, the parameters or the attributes of the layer"
    )


class _Check:
    """Comparison of the outputs of a network with its original outputs."""

    def __init__(self, network: nn.Module, images: Any, name: str) -> None:
        self._network, self._images, self._name = network, images, name
        dtypes = [tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()]
        largest_eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=1e-7)
        # Other kernels may add in another order, so outputs differ by rounding.
        self.tolerance = math.sqrt(largest_eps)

    def remember(self) -> None:
        """Run the network and store its original outputs."""
        self._expected = self._outputs()
        second_run = self.outcome()
        if second_run.error or second_run.change > self.tolerance:
            raise UserError(
                f"network '{self._name}' returns different outputs for the same images (they "
                f"differ by {second_run.change:.1%}), so outputs cannot be compared. In "
                "evaluation mode, forward() must not depend on random numbers or earlier calls."
            )

    def outcome(self) -> Outcome:
        """Run the network in its current state and compare the outputs."""
        try:
            outputs = self._outputs()
        except Exception as error:
            return Outcome(math.inf, reason_of(error))
        if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in self._expected]:
            return Outcome(math.inf, "its outputs have other shapes")
        pairs = zip(outputs, self._expected, strict=True)
        return Outcome(max((_change(*pair) for pair in pairs), default=0.0))

    def _outputs(self) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = self._network(self._images)
        return [
            leaf.detach().double().nan_to_num()
            for leaf in _pytree.tree_leaves(outputs)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]


def _change(outputs: Tensor, expected: Tensor) -> float:
    scale = float(expected.norm())
    difference = float((outputs - expected).norm())
    return difference / scale if scale else (math.inf if difference else 0.0)


def _replace_losslessly(network: nn.Module, layer: Layer) -> None:
    """Replace a layer by a sequence of plain layers: one with its kernel, the others identities.

    Every factorization results in such a sequence, but only these factors are always exact. They
    share memory with the weight of the layer.
    """
    module = network.get_submodule(layer.name)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        raise TypeError(f"{layer.name}: expected a convolution or a linear layer, found {module}")
    weight, bias = module.weight.detach(), module.bias
    sequence, kernels = lossless_factors(layer, weight, has_bias=bias is not None)
    with torch.device("meta"):
        replace_layer(network, layer.name, sequence)
    factors = network.get_submodule(layer.name)
    shapes = {name: tensor.shape for name, tensor in factors.state_dict().items()}
    tensors = {f"{index}.weight": kernel for index, kernel in enumerate(kernels)}
    if bias is not None:
        tensors[f"{len(kernels) - 1}.bias"] = bias.detach()
    factors.load_state_dict(
        {name: tensor.reshape(shapes[name]) for name, tensor in tensors.items()}, assign=True
    )


def lossless_factors(
    layer: Layer, weight: Any, *, has_bias: bool
) -> tuple[list[PlainLayer], list[Any]]:
    """Return plain layers and their kernels, tensors or arrays, that together equal the layer."""
    kernel = weight.reshape(layer.weight_shape)
    inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
    identity = PlainLayer(inputs, inputs, groups=groups)
    full = PlainLayer(
        inputs, outputs, layer.kernel, layer.stride, layer.padding, layer.dilation, groups
    )
    # A 1 x 1 kernel gets one identity, on the side with fewer channels. A larger kernel gets one
    # on each side; for a linear layer on a flattened map, only the one before it.
    identity_before = layer.kernel != (1, 1) or inputs < outputs
    identity_after = not (identity_before if layer.kernel == (1, 1) else layer.kind == "linear")
    sequence, kernels = [full], [kernel]
    if identity_before:
        sequence, kernels = [identity, *sequence], [_identity(inputs, groups, kernel), *kernels]
    if identity_after:
        sequence += [PlainLayer(outputs, outputs, groups=groups)]
        kernels += [_identity(outputs, groups, kernel)]
    sequence[-1] = replace(sequence[-1], bias=has_bias)
    return sequence, kernels


def _identity(channels: int, groups: int, like: Any) -> Any:
    """Return the kernel of a 1 x 1 convolution that outputs its input channels unchanged."""
    if isinstance(like, np.ndarray):
        one_group_array = np.eye(channels // groups, dtype=like.dtype)
        return np.tile(one_group_array, (groups, 1))[:, :, None, None]
    one_group = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
    return one_group.repeat(groups, 1)[:, :, None, None]
