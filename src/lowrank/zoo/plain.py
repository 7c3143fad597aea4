"""Turn networks into plain modules: without wrappers and computed weights, in float32.

Layers are found by class and replaced by name, and weights are read from files by name. The weight
of a layer must therefore be a parameter, not a tensor that a hook computes before each forward
pass, nor a part of a larger tensor as in attention.
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
from lowrank.zoo.attention import has_attention_to_split, split_attention


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without the wrappers of torch.compile, DataParallel and similar tools."""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


def require_eager(network: nn.Module, name: str) -> None:
    """Raise UserError for TorchScript, whose layers cannot be replaced."""
    for place, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"its part '{place}'" if place else "it"
            raise UserError(
                f"network '{name}': {part} is TorchScript, and its layers cannot be replaced. Use "
                "the network as it was before torch.jit.script or torch.jit.trace."
            )


def copied(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, even if it keeps tensors of an earlier forward pass.

    PyTorch refuses to copy a tensor that belongs to an autograd graph. The copy holds its values
    without the graph.
    """
    copies: dict[int, Any] = {}
    for module in network.modules():
        for tensor in _tensors_in(vars(module)):
            if not tensor.is_leaf:
                copies[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(network, copies)


def fold(network: nn.Module) -> list[str]:
    """Turn all weights into weights of layers, in place, and return the names of changed tensors.

    Covers weights that are computed: weight norm and spectral norm (old and new implementations),
    pruning masks and all other parametrizations. Also covers the projections of attention: see
    `lowrank.zoo.attention.split_attention`.
    """
    folded = []
    for place, module in list(network.named_modules()):
        for name in _computed(module):
            if parametrize.is_parametrized(module, name):
                # PyTorch deletes the computed tensor from the class of the module, and copies of
                # the module share that class. So give this module a class of its own.
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
    return folded + split_attention(network)


def can_be_folded(network: nn.Module) -> bool:
    """Return whether `fold` would change a network."""
    return any(map(_computed, network.modules())) or has_attention_to_split(network)


def in_float32(network: nn.Module) -> nn.Module:
    """Convert all floating-point tensors of a network to float32, in place, and return it."""
    tensors = (*network.parameters(), *network.buffers())
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        network.float()
    return network


def _computed(module: nn.Module) -> list[str]:
    """Return the names of a module's tensors that are computed before each forward pass."""
    # The containers of parametrizations are modules too, and have none of their own.
    parametrized = parametrize.is_parametrized(module)
    names = list(getattr(module, "parametrizations", ())) if parametrized else []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            names.append(hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            names.append(hook._tensor_name)
    return list(dict.fromkeys(names))


def _tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors in a value and in its nested lists, tuples, sets and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 4 and isinstance(value, dict):
        for element in value.values():
            yield from _tensors_in(element, depth + 1)
    elif depth < 4 and isinstance(value, list | tuple | set):
        for element in value:
            yield from _tensors_in(element, depth + 1)
