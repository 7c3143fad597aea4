"""Map the nodes in a profile of a model to the layers of the network."""

import os

import onnx

# Product operators. The export names nodes with weights after their layers.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Operators that runtimes fuse with the product before them.
_FUSED = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Add", "Mul"}
)


def layers_of_nodes(path: str | os.PathLike) -> dict[str, str]:
    """Return the plain layer for each node name in ONNX Runtime's profile of a model.

    If ONNX Runtime changes the memory layout of a convolution, the profile lists it under the name
    of its output tensor. This is the output of the activation or sum that was fused with it. A sum
    of two layers belongs to the later layer.

    Parameters
    ----------
    path
        ONNX file that `export_onnx` wrote.

    Returns
    -------
    dict
        Names of nodes with weights (`features.conv1_1` or `features.conv1_1.0`). The keys are
        these names, the names of their output tensors, and the names of output tensors of the
        nodes fused with them.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {initializer.name for initializer in graph.initializer}
    layers: dict[str, str] = {}
    order: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PRODUCTS and weights.intersection(node.input[1:]):
            layer = layers[node.name] = node.name
            order[layer] = len(order)
        elif node.op_type in _FUSED:
            preceding = [layers[name] for name in node.input if name in layers]
            if not preceding:
                continue
            layer = max(preceding, key=order.__getitem__)
        else:
            continue
        layers |= dict.fromkeys(node.output, layer)
    return layers
