"""Copies of ONNX files with fixed sizes, for measurements of costs and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from lowrank.core.tensors import for_inputs
from lowrank.onnx_networks.graph_layers import layer_names
from lowrank.onnx_networks.graph_steps import state_shapes, store_constants
from lowrank.onnx_networks.model_file import inputs_of


def write_fixed(
    path: Path,
    output: Path,
    sizes: Mapping[str, Sequence[int]],
    *,
    named_after_layers: bool = False,
    for_counting: bool = False,
) -> Path:
    """Write a copy of a file whose inputs have fixed sizes, except for the batch, and return it.

    Constant nodes become stored tensors, which the tools that count and profile expect.

    Parameters
    ----------
    path
        File of the network.
    output
        Path of the copy.
    sizes
        Sizes of each input without the batch axis; an empty name stands for the only input.
    named_after_layers
        Give the nodes of layers the names of the layers.
    for_counting
        State the shapes of inner tensors, and fix the batch at one sample, too.
    """
    model = onnx.load(path)
    axes = {entry.name: entry.type.tensor_type.shape.dim for entry in inputs_of(model)}
    shapes = for_inputs([*axes], sizes)
    for name, dimensions in axes.items():
        for dimension, size in zip(list(dimensions)[1:], shapes[name], strict=True):
            dimension.dim_value = size
    # Stated shapes of inner tensors and outputs may name sizes that are fixed now.
    del model.graph.value_info[:]
    store_constants(model.graph)
    if named_after_layers:
        names = layer_names(model.graph)
        for node in model.graph.node:
            node.name = names.get(node.output[0], node.name)
    if for_counting:
        # Also where the file fixes another number of samples: counts are for one sample.
        for dimensions in axes.values():
            if dimensions:
                dimensions[0].dim_value = 1
        state_shapes(model, {name: (1, *shape) for name, shape in shapes.items()}, str(path))
    output.write_bytes(model.SerializeToString())
    return output
