"""Twins of ONNX files, whose batch axis has a fixed size. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx

from lowrank.onnx_networks.model_file import inputs_of


def fix_batch(model: onnx.ModelProto, size: int) -> None:
    """Fix an open batch axis of all inputs at a number of samples, in place.

    Outputs whose batch axis has the same name get the same size. The other shapes that the file
    states are removed, because they may depend on it.
    """
    open_names = set()
    for entry in inputs_of(model):
        dimensions = entry.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].HasField("dim_value"):
            open_names.add(dimensions[0].dim_param)
            dimensions[0].dim_value = size
    for output in model.graph.output:
        for dimension in output.type.tensor_type.shape.dim:
            if dimension.dim_param and dimension.dim_param in open_names:
                dimension.dim_value = size
    del model.graph.value_info[:]


def write_fixed_batch(path: Path, output: Path, size: int) -> Path:
    """Write the twin of a file with a fixed batch of `size` samples, and return its path."""
    model = onnx.load(path)
    fix_batch(model, size)
    output.write_bytes(model.SerializeToString(deterministic=True))
    return output
