"""Networks as plain modules: wrappers taken off, computed weights made into weights, in float32.

Layers are found by their class and replaced by their name, and their weights are read from files
by name: so a layer's weight must be a parameter, not something that a hook computes before each
forward pass.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowrank.errors import UserError


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of what torch.compile, DataParallel and their like put around it."""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif isinstance(inside := getattr(network, "_orig_mod", None), nn.Module):
            network = inside
        else:
            return network


def require_eager(network: nn.Module, name: str) -> None:
    """Raise UserError for TorchScript, whose layers cannot be replaced."""
    for place, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"its part '{place}'" if place else "it"
            raise UserError(
                f"network '{name}': {part} is TorchScript, whose layers cannot be replaced. Give "
                "the network from before torch.jit.script or torch.jit.trace."
            )


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network, also of one that keeps tensors from an earlier forward pass.

    PyTorch refuses to copy a tensor that belongs to a graph of gradients; the copy has its values.
    """
    known: dict[int, Any] = {}
    for module in network.modules():
        for tensor in _tensors_in(vars(module)):
            if not tensor.is_leaf:
                known[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(network, known)


def fold(network: nn.Module) -> list[str]:
    """Make computed weights into plain ones, in place; the tensors that were computed, by name.

    Weight and spectral norm, old and new, pruning masks, and every other parametrization.
    """
    folded = []
    for place, module in list(network.named_modules()):
        for name in _computed(module):
            if parametrize.is_parametrized(module, name):
                # PyTorch takes the computed tensor out of the module's class, which copies share.
                kind = type(module)
                module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm) and hook.name == name:
                    remove_weight_norm(module, name)
                elif isinstance(hook, SpectralNorm) and hook.name == name:
                    remove_spectral_norm(module, name)
                elif isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name:
                    prune.remove(module, name)
            folded.append(f"{place}.{name}" if place else name)
    return folded


def has_computed_weights(network: nn.Module) -> bool:
    """Whether `fold` would change a network."""
    return any(_computed(module) for module in network.modules())


def in_float32(network: nn.Module) -> nn.Module:
    """The network with all its floating-point tensors in float32, in place."""
    tensors = (*network.parameters(), *network.buffers())
    if any(each.is_floating_point() and each.dtype != torch.float32 for each in tensors):
        network.float()
    return network


def _computed(module: nn.Module) -> list[str]:
    """The tensors of one module that are computed before each forward pass."""
    names = list(getattr(module, "parametrizations", ())) if _is_parametrized(module) else []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            names.append(hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            names.append(hook._tensor_name)
    return list(dict.fromkeys(names))


def _is_parametrized(module: nn.Module) -> bool:
    # A module of the parametrizations themselves has none of its own.
    return parametrize.is_parametrized(module)


def _tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in attributes, and in lists, tuples and dictionaries in them."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 4 and isinstance(value, dict):
        for each in value.values():
            yield from _tensors_in(each, depth + 1)
    elif depth < 4 and isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors_in(each, depth + 1)
