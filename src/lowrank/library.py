"""Compress a network in a notebook, without the workflow around it.

import lowrank

small = lowrank.compress(network, input_shape=(3, 224, 224))
small.network          # fine-tune it, then small.export("small.onnx")
small.layers           # ranks, MACs and parameters of each layer, before and after
"""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lowrank.factorize import decompose, get_factorization
from lowrank.networks.export import export_onnx
from lowrank.networks.layers import find_layers
from lowrank.networks.moments import input_moments
from lowrank.networks.registry import NetworkSpec
from lowrank.networks.states import put_factors
from lowrank.plan import PlannedLayer, assign_factorizations
from lowrank.ranks import choose_ranks

# Kim et al. 2016: as the method `tucker` of params.yaml.
TUCKER = {
    "first_conv": "tucker1",
    "conv": "tucker2",
    "pointwise_conv": "svd",
    "flattened_linear": "tucker2",
    "linear": "svd",
}


@dataclass
class Compressed:
    """A compressed network, and what was done to each layer that the method takes."""

    network: nn.Module
    layers: tuple[PlannedLayer, ...]
    input_shape: tuple[int, int, int]

    def export(self, path: str | os.PathLike) -> None:
        """Write the network as ONNX; see `lowrank.networks.export.export_onnx`."""
        name = type(self.network).__name__
        export_onnx(self.network, NetworkSpec(name, self.input_shape, num_classes=0), path)


def compress(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    factorize: Mapping[str, str | None] = TUCKER,
    ranks: Mapping[str, Any] | None = None,
    images: Iterable[Tensor] | None = None,
) -> Compressed:
    """Decompose the layers of a copy of a network, without fine-tuning.

    Parameters
    ----------
    network
        A trained network that takes images; it is left as it is.
    input_shape
        Of one image: (channels, height, width), of any size that the network takes.
    factorize
        Factorization by kind of layer, as `methods.<method>.factorize` in params.yaml.
    ranks
        Rank rule and its settings, as `methods.<method>.ranks`; by default EVBMF.
    images
        Batches (N, channels, height, width) of a few hundred training images, as the network takes
        them; no labels. With them the factors keep the layers' outputs rather than their weights,
        which loses far less before fine-tuning, and takes seconds to minutes.

    Raises
    ------
    UserError
        For an unknown name, a setting out of range, weights that are not finite, or an input
        shape that the network cannot take.
    """
    small = copy.deepcopy(network)
    table = find_layers(small, input_shape, type(network).__name__)
    planned = []
    for name, factorization in assign_factorizations(table, factorize).items():
        weight, _ = _parameters(small.get_submodule(name))
        planned.append(choose_ranks(table[name], weight, factorization, ranks or {}))
    taken = [table[chosen.name] for chosen in planned if not chosen.is_dense]
    moments = {} if images is None else input_moments(small, taken, images)
    for chosen in planned:
        if chosen.is_dense:
            continue
        name, module = chosen.name, small.get_submodule(chosen.name)
        method = get_factorization(chosen.factorization)
        weight, bias = _parameters(module)
        result = decompose(method, table[name], weight, bias, chosen.ranks, moments.get(name))
        put_factors(small, name, result.sequence, result.tensors, source=name)
        small.get_submodule(name).to(module.weight).train(module.training)
    return Compressed(small, tuple(planned), tuple(input_shape))


def _parameters(layer: nn.Module) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias, float32."""
    weight, bias = (
        None if each is None else each.detach().cpu().float().numpy()
        for each in (layer.weight, layer.bias)
    )
    return weight, bias
