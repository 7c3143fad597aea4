"""A network as it passes between steps: its name, its weights, and which layers are factored."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowrank.errors import UserError
from lowrank.networks.checkpoints import load_weights, read_weights, write_weights
from lowrank.networks.registry import NetworkSpec, create_network, network_spec
from lowrank.plan import Factored, PlainLayer
from lowrank.stored import read_header


@dataclass
class State:
    """A network in the middle of its compression; `factored` names the layers replaced so far."""

    spec: NetworkSpec
    network: nn.Module
    factored: dict[str, Factored]


def write_state(path: str | os.PathLike, state: State) -> None:
    """Write a state as safetensors with a header, whole or not at all."""
    header = {
        "network": state.spec.name,
        "factored": {name: factored.to_json() for name, factored in state.factored.items()},
    }
    write_weights(path, state.network, header=header)


def read_state(path: str | os.PathLike) -> State:
    """Build the network that a state file describes and load its weights.

    Raises UserError when the file is missing, damaged, or does not fit the network it names.
    """
    header = read_header(path)
    spec = network_spec(header["network"])
    network = create_network(spec.name)
    factored = {name: Factored.from_json(each) for name, each in header["factored"].items()}
    for name, each in factored.items():
        replace_layer(network, name, each.sequence)
    load_weights(network, read_weights(path), source=str(path))
    return State(spec, network, factored)


def replace_layer(network: nn.Module, name: str, sequence: Sequence[PlainLayer]) -> None:
    """Put a sequence of plain layers in the place of one layer, in place, with fresh weights.

    Raises UserError when the network has no such layer.
    """
    try:
        dense = network.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{type(network).__name__} has no layer '{name}' to put factors into. Make its layer "
            "table anew: `lowrank inspect`."
        ) from None
    build = _linear if isinstance(dense, nn.Linear) else _conv
    network.set_submodule(name, nn.Sequential(*map(build, sequence)))


def put_factors(
    network: nn.Module,
    name: str,
    sequence: Sequence[PlainLayer],
    tensors: Mapping[str, Any],
    *,
    source: str,
) -> None:
    """Replace one layer by its factors, in place.

    `tensors` are named as `decompose` writes them (`0.weight`, ..., the last one's bias) and come
    from `source`, the file to blame. Raises UserError where they do not fit.
    """
    replace_layer(network, name, sequence)
    module = network.get_submodule(name)
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    # A linear layer's factors are 1 x 1 kernels in the file.
    fitting = {
        key: torch.as_tensor(tensor).reshape(shapes.get(key, tensor.shape))
        for key, tensor in tensors.items()
    }
    load_weights(module, fitting, source=source)


def _conv(layer: PlainLayer) -> nn.Module:
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias,
    )


def _linear(layer: PlainLayer) -> nn.Module:
    return nn.Linear(layer.in_channels, layer.out_channels, layer.bias)
