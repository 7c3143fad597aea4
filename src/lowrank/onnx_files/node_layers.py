"""Which layer a node of a running model belongs to."""

import os

import onnx

# Products with weights, which the export names after their layers.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# What runtimes fuse with the product before it.
_FUSED = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Add", "Mul"}
)


def layers_of_nodes(path: str | os.PathLike) -> dict[str, str]:
    """The plain layer of each name that a node may bear in ONNX Runtime's profile of a model.

    A convolution that was put into another order of memory bears the name of its output there,
    which is that of the activation or the sum that was fused with it. Those are followed; of a sum
    of two layers, the later one has it.

    Parameters
    ----------
    path
        An ONNX file that `export_onnx` wrote.

    Returns
    -------
    dict
        By the names of nodes with weights, and of the tensors that they and what is fused with
        them leave: the node with weights, `features.conv1_1` or `features.conv1_1.0`.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {initializer.name for initializer in graph.initializer}
    found: dict[str, str] = {}
    order: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PRODUCTS and weights.intersection(node.input[1:]):
            layer = found[node.name] = node.name
            order[layer] = len(order)
        elif node.op_type in _FUSED:
            before = [found[each] for each in node.input if each in found]
            if not before:
                continue
            layer = max(before, key=order.__getitem__)
        else:
            continue
        found |= dict.fromkeys(node.output, layer)
    return found
