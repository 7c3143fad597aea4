"""Measure the moments of layer inputs of an ONNX network in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch.nn import functional

from lowrank.core.layers import Layer
from lowrank.core.progress import counted
from lowrank.core.tensors import length, pieces
from lowrank.factorize import Moments, Shift
from lowrank.onnx_networks.graph_layers import Site
from lowrank.onnx_networks.model_run import Feed, ModelRun, only_outputs, samples_per_run
from lowrank.surgery.input_moments import InputSums, ShiftSums, samples_of


def graph_moments(
    model: onnx.ModelProto,
    sites: Sequence[Site],
    batches: Sequence[Feed],
    shapes: Mapping[str, Sequence[int]],
    label: str,
) -> dict[str, Moments]:
    """Return the mean and covariance of the inputs of each layer, by layer name.

    Parameters
    ----------
    model
        The network.
    sites
        Layers of the network.
    batches
        Inputs by name, as the network expects them. Labels are not needed.
    shapes
        Shape of each input for one sample, which limits the samples of one run.
    label
        Name of the network for messages.

    Raises
    ------
    UserError
        If there are no inputs, or ONNX Runtime cannot run the network on them.
    """
    sums = {site.layer.name: InputSums(as_padded(site)) for site in sites}
    names = sorted({site.input for site in sites})
    inner = [name for name in names if name not in shapes]
    run = ModelRun(only_outputs(model, inner), label)
    size = samples_per_run(run, model, shapes)
    total = sum(map(length, batches))
    for batch in counted(batches, total, "samples for the inputs of the layers"):
        for piece in pieces(batch, size):
            values = {**piece, **run(piece)}
            for site in sites:
                inputs = padded(site, values[site.input])
                sums[site.layer.name].add(samples_of(as_padded(site), inputs))
    return {name: sum_of_inputs.moments() for name, sum_of_inputs in sums.items()}


def graph_shift(
    original: onnx.ModelProto,
    model: onnx.ModelProto,
    site: Site,
    batches: Iterable[Feed],
    shapes: Mapping[str, Sequence[int]],
    label: str,
) -> tuple[Moments, Shift]:
    """Return the input moments of one layer, and their shift relative to the original network.

    `model` is the network with other layers replaced; the other arguments are those of
    `graph_moments`. Raises UserError in the same cases.
    """
    sums = ShiftSums(as_padded(site))
    before, now = (
        ModelRun(only_outputs(network, [site.input]), label) for network in (original, model)
    )
    size = samples_per_run(before, original, shapes)
    for batch in batches:
        for piece in pieces(batch, size):
            inputs = (
                {**piece, **run(piece)}[site.input]
                if site.input not in shapes
                else piece[site.input]
                for run in (before, now)
            )
            sums.add(*(samples_of(as_padded(site), padded(site, array)) for array in inputs))
    return sums.shifted_moments()


def as_padded(site: Site) -> Layer:
    """Return the layer as it is applied to inputs that `padded` returns."""
    layer = site.layer
    return layer if layer.kind == "linear" else replace(layer, padding=(0, 0))


def padded(site: Site, inputs: np.ndarray) -> torch.Tensor:
    """Return the inputs of a layer as a tensor, with its padding, along two axes."""
    # Arrays that are mapped from a file are not writable, which PyTorch needs.
    tensor = torch.from_numpy(np.require(inputs, np.float32, "W"))
    if site.layer.kind == "linear":
        return tensor
    pads = [*site.pads, (0, 0)][:2]
    if tensor.ndim == 3:
        tensor = tensor[..., None]
    (top, bottom), (left, right) = pads
    if not any((left, right, top, bottom)):
        return tensor
    return functional.pad(tensor, (left, right, top, bottom))
