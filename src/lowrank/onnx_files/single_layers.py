"""Build ONNX models of plain layers for latency measurements."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lowrank.core.layers import Pair, PlainLayer

_OPSET = 18


def side_by_side(layers: Sequence[tuple[PlainLayer, Pair]], batch_size: int = 1) -> onnx.ModelProto:
    """Build a model with one convolution for each plain layer and input map (height, width).

    Node i has the name `layer<i>`. Each node has its own input, because ONNX Runtime runs quantized
    layers that share an input in float. Each node has its own output, pooled to one pixel, so that
    the convolutions take nearly all the time. Weights are normal noise, because products with
    zeros and very small numbers run at another speed.
    """
    generator = np.random.default_rng(0)
    inputs, nodes, outputs, tensors = {}, [], [], []
    for index, (layer, input_map) in enumerate(layers):
        name = f"layer{index}"
        inputs[f"{name}.input"] = (batch_size, layer.in_channels, *input_map)
        # Shape (T, S / g, D_h, D_w), scaled so that outputs have about the scale of the inputs.
        weight = generator.standard_normal(layer.weight_shape, dtype=np.float32)
        weight /= np.sqrt(np.prod(layer.weight_shape[1:]))
        tensors.append(numpy_helper.from_array(weight, f"{name}.weight"))
        tensors.append(
            numpy_helper.from_array(np.ones(layer.out_channels, np.float32), f"{name}.bias")
        )
        nodes.append(
            helper.make_node(
                "Conv",
                [f"{name}.input", f"{name}.weight", f"{name}.bias"],
                [name],
                name=name,
                kernel_shape=layer.kernel,
                strides=layer.stride,
                pads=[*layer.padding, *layer.padding],
                dilations=layer.dilation,
                group=layer.groups,
            )
        )
        nodes.append(helper.make_node("GlobalAveragePool", [name], [f"{name}.pooled"]))
        outputs.append((f"{name}.pooled", (batch_size, layer.out_channels, 1, 1)))
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        tensors,
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(
        graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset])
    )
