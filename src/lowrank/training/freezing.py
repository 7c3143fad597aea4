"""Leaving the first layers of a network as they are, so that a step is spared their gradients."""

from torch import nn

from lowrank.zoo.forward import output_for_zeros
from lowrank.zoo.registry import NetworkSpec


def freeze_first(network: nn.Module, spec: NetworkSpec, share: float) -> list[nn.Parameter]:
    """Freeze the first layers to run, and what runs between them (Brock et al. 2017, FreezeOut).

    Early layers settle first and have the largest feature maps. Frozen batch normalisation uses
    its running statistics.

    Parameters
    ----------
    share
        Of the layers with matrices or kernels (each factor is one), rounded to whole layers; the
        last always stays trained.

    Returns
    -------
    list
        The parameters that no longer ask for gradients and did before.
    """
    order = _in_order_of_running(network, spec)
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


def _in_order_of_running(network: nn.Module, spec: NetworkSpec) -> list[nn.Module]:
    """The modules that have parameters of their own, as a forward pass first comes to them."""
    order: dict[nn.Module, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: order.setdefault(module))
        for module in network.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        output_for_zeros(network, spec.input_shape, spec.name)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)
