"""Whether a network computes the same when its layers are replaced by lossless factors.

What a layer is replaced by is another module: no `nn.Conv2d`, and without a `weight`. A forward()
that looks at such things computes something else afterwards, whatever the ranks. So each network
runs on a few images with every layer replaced at full rank, where the factors themselves lose
nothing, and layers that change its outputs are found by bisection.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    """What became of the network with some layers replaced: how far its outputs moved, or why not.

    `change` is relative: the norm of the difference over that of the outputs.
    """

    change: float
    error: str | None = None


@torch.no_grad()
def layers_that_must_stay(
    network: nn.Module,
    table: LayerTable,
    images: Tensor,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, str]:
    """The layers that no factors can replace without changing the network's outputs.

    Parameters
    ----------
    network
        It is left as it was. It runs in evaluation mode.
    table
        Its layers; those that are not factored anyway are left alone.
    images
        Real ones, (N, C, H, W), as the network takes them.
    say
        Is told of each layer that stays, and why.

    Returns
    -------
    dict
        The reason by the layer's name. Raises UserError for a network that answers the same images
        differently each time, for then nothing can be compared.
    """
    layers = [layer for layer in table.layers if not layer.not_factored]
    check = _Check(network, images, table.network)
    present = {layer.name: network.get_submodule(layer.name) for layer in layers}
    reasons: dict[str, str] = {}

    def keep_equal(group: Sequence[Layer]) -> None:
        """Replace the layers of a group, without those that change the outputs."""
        if not group:
            return
        for layer in group:
            _replace_losslessly(network, layer)
        outcome = check.outcome()
        if outcome.error is None and outcome.change <= check.tolerance:
            return
        for layer in group:
            network.set_submodule(layer.name, present[layer.name])
        if len(group) == 1:
            reasons[group[0].name] = _reason(outcome)
            say(f"{group[0].name} stays as it is: {reasons[group[0].name]}")
            return
        middle = len(group) // 2
        keep_equal(group[:middle])
        keep_equal(group[middle:])

    try:
        with evaluation_mode(network):
            check.remember()
            keep_equal(layers)
    finally:
        for name, module in present.items():
            network.set_submodule(name, module)
    return reasons


def _reason(outcome: Outcome) -> str:
    if outcome.error:
        return f"with factors in its place the network fails: {outcome.error}"
    return (
        f"factors that lose nothing change the network's outputs by {outcome.change:.1%}: "
        "forward() looks at the layer's type, its parameters or its attributes"
    )


class _Check:
    """Compares a network's outputs with those that it had before."""

    def __init__(self, network: nn.Module, images: Tensor, name: str) -> None:
        self._network, self._images, self._name = network, images, name
        floats = [each.dtype for each in network.parameters() if each.is_floating_point()]
        coarsest = max((torch.finfo(each).eps for each in floats), default=1e-7)
        # Other kernels may compute the same in another order.
        self.tolerance = math.sqrt(coarsest)

    def remember(self) -> None:
        """Run the network as it is."""
        self._expected = self._outputs()
        again = self.outcome()
        if again.error or again.change > self.tolerance:
            raise UserError(
                f"network '{self._name}' answers the same images differently each time (its "
                f"outputs differ by {again.change:.1%}), so that nothing can be compared. Its "
                "forward() must not depend on chance or on earlier calls in evaluation mode."
            )

    def outcome(self) -> Outcome:
        """Run the network as it is now."""
        try:
            found = self._outputs()
        except Exception as error:
            return Outcome(math.inf, reason_of(error))
        if [each.shape for each in found] != [each.shape for each in self._expected]:
            return Outcome(math.inf, "its outputs have other shapes")
        pairs = zip(found, self._expected, strict=True)
        return Outcome(max((_change(*pair) for pair in pairs), default=0.0))

    def _outputs(self) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = self._network(self._images)
        return [
            each.detach().double().nan_to_num()
            for each in _pytree.tree_leaves(outputs)
            if isinstance(each, Tensor) and each.is_floating_point()
        ]


def _change(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.norm())
    difference = float((found - expected).norm())
    return difference / scale if scale else (math.inf if difference else 0.0)


def _replace_losslessly(network: nn.Module, layer: Layer) -> None:
    """Put plain layers in the place of one, of which one has its kernel and others do nothing.

    Such is the shape that every factorization leaves; unlike the factors of some, these are exact.
    They share the memory of the layer's weight.
    """
    module = network.get_submodule(layer.name)
    weight, bias = module.weight.detach(), module.bias
    sequence, kernels = _lossless(layer, weight, has_bias=bias is not None)
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


def _lossless(
    layer: Layer, weight: Tensor, *, has_bias: bool
) -> tuple[list[PlainLayer], list[Tensor]]:
    """Plain layers and their kernels, which together are the layer's."""
    kernel = weight.reshape(layer.weight_shape)
    inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
    pass_on = PlainLayer(inputs, inputs, groups=groups)
    whole = PlainLayer(
        inputs, outputs, layer.kernel, layer.stride, layer.padding, layer.dilation, groups
    )
    # A matrix next to it, on its smaller side; a window between two, or, on a map that a linear
    # layer sees flattened, behind one.
    before = layer.kernel != (1, 1) or inputs < outputs
    after = not (before if layer.kernel == (1, 1) else layer.kind == "linear")
    sequence, kernels = [whole], [kernel]
    if before:
        sequence, kernels = [pass_on, *sequence], [_identity(inputs, groups, kernel), *kernels]
    if after:
        sequence += [PlainLayer(outputs, outputs, groups=groups)]
        kernels += [_identity(outputs, groups, kernel)]
    sequence[-1] = replace(sequence[-1], bias=has_bias)
    return sequence, kernels


def _identity(channels: int, groups: int, like: Tensor) -> Tensor:
    """The kernel of a 1 x 1 convolution that passes its channels on."""
    one_group = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
    return one_group.repeat(groups, 1)[:, :, None, None]
