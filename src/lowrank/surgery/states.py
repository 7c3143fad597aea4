"""Store a network between steps: its source, its weights and its factored layers."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import PlainLayer
from lowrank.core.plans import Factored
from lowrank.core.stored import read_header, read_tensors
from lowrank.errors import UserError
from lowrank.factorize import Decomposition
from lowrank.files import sha256_of
from lowrank.onnx_networks.constant_map import ConstantMap
from lowrank.onnx_networks.selection import Selection
from lowrank.zoo.creation import build
from lowrank.zoo.registry import NetworkSpec
from lowrank.zoo.weight_files import load_weights, read_weights, write_weights


@dataclass
class State:
    """Network during compression.

    `factored` holds the layers replaced so far, by name. `source` describes how to build the dense
    network; by default it is the registered network that `spec` names.
    """

    spec: NetworkSpec
    network: nn.Module
    factored: dict[str, Factored]
    source: NetworkSource | None = None


def write_state(path: str | os.PathLike, state: State) -> None:
    """Write a state to a safetensors file with a header, atomically."""
    source = state.source or NetworkSource(network=state.spec.name)
    header: dict[str, Any] = {
        "network": source.to_json(),
        "spec": state.spec.to_json(),
        "factored": {name: factored.to_json() for name, factored in state.factored.items()},
    }
    if source.onnx:
        # The state holds the weights of layers; everything else comes from the file.
        header["file"] = sha256_of(source.onnx)
    write_weights(path, state.network, header=header)


def read_state(path: str | os.PathLike, source: NetworkSource) -> State:
    """Build a network and load the weights and factors of a state file into it.

    `source` comes from params.yaml and describes how to build the network. The description in the
    file is only compared with it, because a file can come from anywhere and opening it must not
    run code that it names.

    Raises UserError if the file is missing or damaged, describes another network than `source`,
    or does not fit it, or if the network cannot be built.
    """
    spec, factored_layers = _read_header(path, source)
    if source.onnx and read_header(path).get("file") != sha256_of(source.onnx):
        raise UserError(
            f"{path}: was made from another version of {source.onnx}. Delete {path} and run the "
            "same command again."
        )
    network = build(source, spec.input_shape, spec.forms)
    for name, factored in factored_layers.items():
        replace_layer(network, name, factored.sequence)
    load_weights(network, read_weights(path), source=str(path))
    return State(spec, network, factored_layers, source)


def read_spec(path: str | os.PathLike) -> NetworkSpec:
    """Read the specification of the network in a state file, without its weights.

    Raises UserError if the file is missing, damaged or not a state file.
    """
    return _read_header(path)[0]


def _read_header(
    path: str | os.PathLike, expected: NetworkSource | None = None
) -> tuple[NetworkSpec, dict[str, Factored]]:
    """Read the specification and the factored layers.

    Raises UserError if the file is not a state file or describes another network than `expected`.
    """
    header = read_header(path)
    try:
        source = NetworkSource.parse(header["network"])
        spec = NetworkSpec.from_json(header["spec"])
        factored = {
            name: Factored.from_json(document) for name, document in header["factored"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(
            f"{path}: not a state file, or one of an earlier version of lowrank. Delete it and run "
            "the same command again."
        ) from error
    if expected is not None and source != expected:
        raise UserError(
            f"{path}: holds the network {json.dumps(source.to_json())}, but params.yaml describes "
            f"{json.dumps(expected.to_json())} (`checkpoint`). No code named in the file was run. "
            "Correct params.yaml, or delete the file and run the same command again."
        )
    return spec, factored


class FactorsOnMap(nn.Sequential):
    """Convolutions that replace a linear layer on a flattened map.

    Parameters
    ----------
    layers
        Convolutions. The output map of the last one has one pixel.
    shape
        Shape of the map before flattening: (C, H, W).
    """

    def __init__(self, layers: Sequence[nn.Module], shape: tuple[int, int, int]) -> None:
        super().__init__(*layers)
        self.shape = shape

    def forward(self, vectors: Tensor) -> Tensor:  # (N, C H W) -> (N, T)
        return super().forward(vectors.unflatten(1, self.shape)).flatten(1)


def replace_layer(network: nn.Module, name: str, sequence: Sequence[PlainLayer]) -> None:
    """Replace one layer by a sequence of plain layers with fresh weights, in place.

    The layer may be dense or consist of factors of an earlier round. If it is a linear layer on a
    flattened C x H x W map, there are two cases. If the kernel of the first plain layer covers the
    map, the plain layers become linear layers. Otherwise they become convolutions on the map. In
    all cases, tensors are named `0.weight`, `1.weight`, ... in the order of the sequence.

    Raises UserError if the network has no such layer.
    """
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{type(network).__name__} has no layer '{name}' to replace by factors. Update its "
            "layer table: `lowrank inspect`."
        ) from None
    network.set_submodule(name, _built(sequence, replaces_linear=_is_linear(module)))


def put_factors(
    network: nn.Module,
    name: str,
    sequence: Sequence[PlainLayer],
    tensors: Mapping[str, Any],
    *,
    source: str,
) -> None:
    """Replace one layer, or its factors of an earlier round, by factors, in place.

    `tensors` are the kernels of the plain layers and the bias of the last one, named as `decompose`
    writes them (`0.weight`, ...). `source` is the file that messages name. Raises UserError if the
    tensors do not fit the sequence.
    """
    replace_layer(network, name, sequence)
    module = network.get_submodule(name)
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    weights = {key: torch.as_tensor(tensor) for key, tensor in tensors.items()}
    for key, tensor in weights.items():
        # Factors of a linear layer are kernels in the file, but matrices in the network.
        if key in shapes and tensor.numel() == shapes[key].numel():
            weights[key] = tensor.reshape(shapes[key])
    load_weights(module, weights, source=source)


def files_of_factors(paths: Iterable[Path]) -> list[Path]:
    """Return files of factors: those of the paths that are files, and all in the others."""
    return [
        file
        for path in paths
        for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])
    ]


def put_stored_factors(state: State, files: Iterable[str | os.PathLike]) -> None:
    """Insert the factors of some layers, which `decompose` wrote to files named after the layers.

    Layers that the step left dense keep their weights. Raises UserError as `put_factors` does.
    """
    for file in files:
        layer, header = Path(file).stem, read_header(file)
        if "dense_because" in header:
            continue
        factored = state.factored[layer] = Factored.from_json(header)
        put_factors(
            state.network, layer, factored.sequence, read_tensors(file), source=os.fspath(file)
        )


@contextmanager
def replaced(network: nn.Module, name: str, factors: Decomposition) -> Iterator[None]:
    """Replace one layer by factors, and restore the layer afterwards."""
    original = network.get_submodule(name)
    put_factors(network, name, factors.sequence, factors.tensors, source=name)
    network.get_submodule(name).to(next(original.parameters()))
    try:
        yield
    finally:
        network.set_submodule(name, original)


def _is_linear(module: nn.Module) -> bool:
    """Return whether a layer, dense or factored, has vectors as input rather than maps."""
    if isinstance(module, nn.Sequential) and not isinstance(module, FactorsOnMap):
        module = module[0]
    return isinstance(module, nn.Linear | FactorsOnMap)


def _built(sequence: Sequence[PlainLayer], *, replaces_linear: bool) -> nn.Module:
    if not replaces_linear:
        return nn.Sequential(*map(_conv, sequence))
    # Without padding, all kernels together cover the map exactly and output one pixel.
    height, width = (1 + sum(layer.kernel[axis] - 1 for layer in sequence) for axis in (0, 1))
    first, *others = sequence
    if first.kernel == (height, width) == (1, 1):
        return nn.Sequential(*map(_linear, sequence))
    if first.kernel == (height, width):
        linear = nn.Linear(first.in_channels * height * width, first.out_channels, first.bias)
        return nn.Sequential(linear, *map(_linear, others))
    return FactorsOnMap([*map(_conv, sequence)], (first.in_channels, height, width))


def _conv(layer: PlainLayer) -> nn.Module:
    if layer.selects:
        return Selection(layer.in_channels, layer.out_channels, is_linear=False)
    if layer.constant:
        return ConstantMap(layer)
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
    if layer.selects:
        return Selection(layer.in_channels, layer.out_channels, is_linear=True)
    return nn.Linear(layer.in_channels, layer.out_channels, layer.bias)
