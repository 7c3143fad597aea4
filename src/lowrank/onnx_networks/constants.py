"""Read stored tensors and attributes of an ONNX graph."""

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


class Constants:
    """The stored tensors of a graph: initializers, Constant nodes, and plain copies of them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for entry in node.attribute:
                    if entry.name == "value":
                        self._tensors[node.output[0]] = entry.t
            elif node.op_type == "Identity" and node.input[0] in self._tensors:
                self._tensors[node.output[0]] = self._tensors[node.input[0]]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor."""
        return tuple(self._tensors[name].dims)

    def is_float(self, name: str) -> bool:
        """Return whether a stored tensor holds floating-point numbers."""
        return self._tensors[name].data_type in _FLOATS

    def array(self, name: str) -> np.ndarray:
        """Return a stored tensor in its own type."""
        return numpy_helper.to_array(self._tensors[name])


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
