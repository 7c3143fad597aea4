"""Prepare the graph of a user's ONNX file for the quantization to int8."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.version_converter

from lowrank.errors import UserError
from lowrank.onnx_networks.model_file import opset_of
from lowrank.onnx_networks.model_run import write_optimized

# First operator set with a scale for each channel.
PER_CHANNEL_OPSET = 13


def write_prepared(model: Path | onnx.ModelProto, output: Path, label: str = "") -> Path:
    """Write a network as ONNX Runtime simplifies it, with a scale for each channel and named nodes.

    Returns the path of the new file.

    Parameters
    ----------
    model
        The network or its file.
    output
        Path of the new file.
    label
        Name of the network for messages. Default: the path of the file.

    Raises
    ------
    UserError
        If the operator set of the network is too old and cannot be converted.
    """
    network = onnx.load(model) if isinstance(model, Path) else model
    label = label or str(model)
    if opset_of(network) < PER_CHANNEL_OPSET:
        try:
            network = onnx.version_converter.convert_version(network, PER_CHANNEL_OPSET)
        except Exception as error:  # The converter raises nearly any type.
            raise UserError(
                f"{label}: uses version {opset_of(network)} of ONNX's operator set, which cannot "
                f"be converted to {PER_CHANNEL_OPSET}, the first with a scale for each channel in "
                f"int8 ({error}). Export the network with a newer operator set, or compress it "
                "without int8."
            ) from error
    write_optimized(network, output, label)
    optimized = onnx.load(output)
    name_nodes(optimized.graph)
    onnx.save(optimized, output)
    return output


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give a name to each node without one, because nodes that stay in float are named."""
    taken = {node.name for node in graph.node}
    for number, node in enumerate(graph.node):
        if not node.name:
            names = (f"{node.op_type}_{number}{'_' * extra}" for extra in range(len(taken) + 1))
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
