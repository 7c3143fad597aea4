"""Run a network through the whole pipeline without training, up to ONNX Runtime."""

import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.api import TUCKER, compress
from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import Layer, LayerTable
from lowrank.core.rounds import assign_factorizations
from lowrank.factorize import get_factorization, one_group
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.surgery.finding import find_layers
from lowrank.zoo.creation import create
from lowrank.zoo.forward import evaluation_mode

# Largest error of the logits, and smallest difference between the logits of two images, as shares
# of the logits' range. Without the second limit, a network that ignores its input would pass.
LARGEST_ERROR = 1e-3
LEAST_DIFFERENCE = 1e-2

# Differs from the two images that the exporter uses, because the batch size must be free.
_IMAGES = 3

# The same as the method `tucker`, but with a truncated SVD also after a flattened map.
FACTORIZE = TUCKER | {"flattened_linear": "svd"}


@dataclass(frozen=True)
class Coverage:
    """The outcome for one network.

    Parameters
    ----------
    network
        Name of the network.
    input_shape
        Channels, height and width.
    layers
        Number of layers that the forward pass calls.
    factored
        Number of layers that were replaced at half of their full ranks.
    dense
        Number of layers that stayed dense, by reason.
    macs
        Multiply-accumulates of all these layers, before and after.
    macs_of_file
        Multiply-accumulates of the ONNX file, including those of attention.
    relative_error
        Largest difference between the logits of ONNX Runtime and of PyTorch, relative to their
        range.
    difference
        Largest difference between the logits of two images, relative to the same range.
    seconds
        Total time.
    """

    network: str
    input_shape: tuple[int, ...]
    layers: int
    factored: int
    dense: dict[str, int]
    macs: tuple[int, int]
    macs_of_file: int
    relative_error: float
    difference: float
    seconds: float

    @property
    def failure(self) -> str | None:
        """Reason why the network fails, or None."""
        if not self.relative_error <= LARGEST_ERROR:
            return f"error {self.relative_error:.2g} of the logits' range"
        if not self.difference >= LEAST_DIFFERENCE:
            return f"images differ by {self.difference:.2g} of the logits' range only"
        if not self.factored:
            return "no layer was factored"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON. Pairs are (before, after)."""
        return asdict(self)


def cover(source: NetworkSource, seed: int = 0) -> Coverage:
    """Run a network with random weights through the whole pipeline and compare the logits.

    Raises UserError if a step does.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    spec, network = create(source)
    _enliven(network)
    table = find_layers(network, spec.input_shape, spec.name)
    half = {"select": "fixed", "table": half_ranks(table)}
    small = compress(network, spec.input_shape, factorize=FACTORIZE, ranks=half)
    del network
    images = _images(spec.input_shape)
    _calibrate(small.network, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(small.network, spec, path, external_data=True)
        with evaluation_mode(small.network), torch.no_grad():
            expected = small.network(images).numpy()
        del small.network
        macs_of_file = count(path).macs
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"images": images.numpy()})[0]
    planned = {layer.name: layer for layer in small.layers}
    changed = {name: layer for name, layer in planned.items() if not layer.is_dense}
    dense = [layer for layer in table.layers if layer.name not in changed]
    before = sum(layer.dense_macs for layer in table.layers)
    after = sum(layer.dense_macs for layer in dense) + sum(p.macs[1] for p in changed.values())
    range_ = expected.max() - expected.min()
    return Coverage(
        network=spec.name,
        input_shape=spec.input_shape,
        layers=len(table.layers),
        factored=len(changed),
        dense=dict(Counter(layer.not_factored or "factors cost more" for layer in dense)),
        macs=(before, after),
        macs_of_file=macs_of_file,
        relative_error=float(np.abs(logits - expected).max() / range_),
        difference=float(np.abs(expected[0] - expected[1]).max() / range_),
        seconds=round(time.monotonic() - started, 1),
    )


def half_ranks(table: LayerTable) -> dict[str, tuple[int, ...]]:
    """Return half of the full ranks of one group for each layer, rounded down but at least 1.

    A square linear layer on tokens gets a third: half of its rank would save nothing.
    """
    assigned = assign_factorizations(table, FACTORIZE)
    return {name: _half(table[name], factorization) for name, factorization in assigned.items()}


def _half(layer: Layer, factorization: str) -> tuple[int, ...]:
    full = get_factorization(factorization).full_ranks(one_group(layer))
    square = layer.kernel == (1, 1) and layer.in_channels == layer.out_channels
    on_tokens = layer.kind == "linear" and math.prod(layer.input_map) > 1
    part = 3 if square and on_tokens else 2
    return tuple(max(1, rank // part) for rank in full)


def _images(shape: tuple[int, ...]) -> Tensor:
    """Return random images, (N, C, H, W), so smooth that pooling does not average them out."""
    channels, *size = shape
    coarse = torch.randn(_IMAGES, channels, 6, 6) + torch.randn(_IMAGES, channels, 1, 1)
    return functional.interpolate(coarse, size, mode="bicubic")


def _enliven(network: nn.Module) -> None:
    """Initialize parameters that start near zero, as training would.

    Some heads start at zero and some residual branches at 1e-6. Errors in them would not affect
    the outputs.
    """
    for name, parameter in network.named_parameters():
        faint = parameter.detach().abs().max() < 1e-4
        if faint and parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif faint and not name.endswith("bias"):
            nn.init.constant_(parameter, 0.1)


def _calibrate(network: nn.Module, images: Tensor) -> None:
    """Set the statistics of batch normalizations, so that outputs do not vanish or explode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(network), torch.no_grad():
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
