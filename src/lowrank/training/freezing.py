"""Freeze the first layers of a network, so that steps do not compute their gradients."""

from torch import nn

from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.registry import NetworkSpec


def freeze_first(network: nn.Module, spec: NetworkSpec, share: float) -> list[nn.Parameter]:
    """Freeze the first layers in forward order (Brock et al. 2017, FreezeOut).

    The modules between these layers are frozen too. Early layers converge first and have the
    largest feature maps. Frozen batch normalization uses its running statistics.

    Parameters
    ----------
    network
        Network to change, in place.
    spec
        Specification of its input.
    share
        Share of the layers with matrices or kernels to freeze, rounded to a number of layers. Each
        factor counts as one layer. The last layer is never frozen.

    Returns
    -------
    list
        Parameters that required gradients before and do not any more.
    """
    order = _in_forward_order(network, spec)
    layers = [m for m in order if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    first_trained = layers[min(round(share * len(layers)), len(layers) - 1)]
    frozen = []
    for module in order[: order.index(first_trained)]:
        module.eval()
        frozen += [p for p in module.parameters(recurse=False) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None
    return frozen


def _in_forward_order(network: nn.Module, spec: NetworkSpec) -> list[nn.Module]:
    """Return the modules with parameters of their own, in the order of their first call."""
    order: dict[nn.Module, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: order.setdefault(module))
        for module in network.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        output_for_zeros(network, spec.input_shape, spec.name, spec.forms)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)
