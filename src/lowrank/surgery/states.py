"""A network as it passes between steps: its source, its weights, and which layers are factored."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import PlainLayer
from lowrank.core.plans import Factored
from lowrank.core.stored import read_header
from lowrank.errors import UserError
from lowrank.factorize import Decomposition
from lowrank.zoo.creation import build
from lowrank.zoo.registry import NetworkSpec
from lowrank.zoo.weight_files import load_weights, read_weights, write_weights


@dataclass
class State:
    """A network in the middle of its compression.

    `factored` names the layers replaced so far. `source` says how the dense network is built; by
    default it is the registered one that `spec` names.
    """

    spec: NetworkSpec
    network: nn.Module
    factored: dict[str, Factored]
    source: NetworkSource | None = None


def write_state(path: str | os.PathLike, state: State) -> None:
    """Write a state as safetensors with a header, whole or not at all."""
    source = state.source or NetworkSource(network=state.spec.name)
    header = {
        "network": source.to_json(),
        "spec": state.spec.to_json(),
        "factored": {name: factored.to_json() for name, factored in state.factored.items()},
    }
    write_weights(path, state.network, header=header)


def read_state(path: str | os.PathLike, source: NetworkSource) -> State:
    """Build a network and load the weights and factors of a state file into it.

    `source` says how the network is built, and comes from params.yaml. The file's own description
    is only compared with it: files come from elsewhere, and opening one must not run code that it
    names.

    Raises UserError when the file is missing or damaged, describes another network than `source`,
    or does not fit it, or when the network cannot be built.
    """
    spec, factored = _read_header(path, source)
    network = build(source, spec.input_shape)
    for name, each in factored.items():
        replace_layer(network, name, each.sequence)
    load_weights(network, read_weights(path), source=str(path))
    return State(spec, network, factored, source)


def read_spec(path: str | os.PathLike) -> NetworkSpec:
    """What the network of a state file takes; its weights are not read.

    Raises UserError when the file is missing, damaged or no state.
    """
    return _read_header(path)[0]


def _read_header(
    path: str | os.PathLike, expected: NetworkSource | None = None
) -> tuple[NetworkSpec, dict[str, Factored]]:
    """The specification and the factored layers; raises UserError where it is not `expected`'s."""
    header = read_header(path)
    try:
        source = NetworkSource.parse(header["network"])
        spec = NetworkSpec.from_json(header["spec"])
        factored = {name: Factored.from_json(each) for name, each in header["factored"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(
            f"{path}: not the state of a network, or one of an earlier version of lowrank. Delete "
            "it and run the same command again."
        ) from error
    if expected is not None and source != expected:
        raise UserError(
            f"{path}: holds the network {json.dumps(source.to_json())}, but params.yaml describes "
            f"{json.dumps(expected.to_json())} (`checkpoint`). Nothing that the file names was "
            "run. Correct params.yaml, or delete the file and run the same command again."
        )
    return spec, factored


class FactorsOnMap(nn.Sequential):
    """Convolutions in the place of a linear layer, on the map that reaches it flattened.

    Parameters
    ----------
    layers
        The convolutions; the map that the last one leaves is of one pixel.
    shape
        Of the map: (C, H, W).
    """

    def __init__(self, layers: Sequence[nn.Module], shape: tuple[int, int, int]) -> None:
        super().__init__(*layers)
        self.shape = shape

    def forward(self, vectors: Tensor) -> Tensor:  # (N, C H W) -> (N, T)
        return super().forward(vectors.unflatten(1, self.shape)).flatten(1)


def replace_layer(network: nn.Module, name: str, sequence: Sequence[PlainLayer]) -> None:
    """Put a sequence of plain layers in the place of one layer, in place, with fresh weights.

    The layer may be dense, or the factors of an earlier round. In the place of a linear layer
    behind a flattened C x H x W map, plain layers of which the first has that map for its kernel
    become linear layers, others work on the map. The tensors are named `0.weight`, `1.weight`, ...
    in the order of the sequence in any case.

    Raises UserError when the network has no such layer.
    """
    try:
        present = network.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{type(network).__name__} has no layer '{name}' to put factors into. Make its layer "
            "table anew: `lowrank inspect`."
        ) from None
    network.set_submodule(name, _built(sequence, in_place_of_linear=_is_linear(present)))


def put_factors(
    network: nn.Module,
    name: str,
    sequence: Sequence[PlainLayer],
    tensors: Mapping[str, Any],
    *,
    source: str,
) -> None:
    """Replace one layer, or its factors of an earlier round, by factors, in place.

    `tensors` are named as `decompose` writes them (`0.weight`, ..., the last one's bias), are the
    plain layers' kernels, and come from `source`, the file to blame. Raises UserError where they
    do not fit.
    """
    replace_layer(network, name, sequence)
    module = network.get_submodule(name)
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    fitting = {key: torch.as_tensor(tensor) for key, tensor in tensors.items()}
    for key, tensor in fitting.items():
        # A linear layer's factors are kernels in the file, matrices in the network.
        if key in shapes and tensor.numel() == shapes[key].numel():
            fitting[key] = tensor.reshape(shapes[key])
    load_weights(module, fitting, source=source)


@contextmanager
def replaced(network: nn.Module, name: str, factors: Decomposition) -> Iterator[None]:
    """Put factors in the place of one layer, and afterwards the layer back."""
    present = network.get_submodule(name)
    put_factors(network, name, factors.sequence, factors.tensors, source=name)
    network.get_submodule(name).to(next(present.parameters()))
    try:
        yield
    finally:
        network.set_submodule(name, present)


def _is_linear(module: nn.Module) -> bool:
    """Whether a layer, dense or factored, takes vectors rather than maps."""
    if isinstance(module, nn.Sequential) and not isinstance(module, FactorsOnMap):
        module = module[0]
    return isinstance(module, nn.Linear | FactorsOnMap)


def _built(sequence: Sequence[PlainLayer], *, in_place_of_linear: bool) -> nn.Module:
    if not in_place_of_linear:
        return nn.Sequential(*map(_conv, sequence))
    # All windows together cover the map, without padding, and leave one pixel.
    height, width = (1 + sum(layer.kernel[axis] - 1 for layer in sequence) for axis in (0, 1))
    first, *others = sequence
    if first.kernel == (height, width):
        linear = nn.Linear(first.in_channels * height * width, first.out_channels, first.bias)
        return nn.Sequential(linear, *map(_linear, others))
    return FactorsOnMap([*map(_conv, sequence)], (first.in_channels, height, width))


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
