"""Small ONNX networks with every form of layer that exporters write."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def network(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    types: Mapping[str, int] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Return a network with the input `x`, (batch, 6, 9, 8), by default.

    Inputs are in float32, or have one of ONNX's `types`.
    """
    types, inputs = types or {}, inputs or {"x": ("batch", 6, 9, 8)}
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    declared = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
        for name, shape in inputs.items()
    ]
    if ir_version < 4:
        declared += [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in stored
        ]
    graph = helper.make_graph(
        nodes,
        "network",
        declared,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        stored,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    model.producer_name = "tests"
    helper.set_model_props(model, {"dictionary": "a b c"})
    # Outputs need a type, which ONNX infers.
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    del model.graph.output[:]
    model.graph.output.extend(types[name] for name in outputs)
    return model


def convolution(weight: np.ndarray, bias: bool = True, **attributes: object) -> onnx.ModelProto:
    """Return a network of one convolution, between two activations."""
    tensors = {"w": weight} | ({"b": random(weight.shape[0], seed=1)} if bias else {})
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "before"),
        helper.make_node("Conv", ["h", *tensors], ["c"], "/block/0/Conv", **attributes),
        helper.make_node("Tanh", ["c"], ["y"], "after"),
    ]
    shape = ("batch", weight.shape[1] * attributes.get("group", 1), 9, 8)
    return network(nodes, tensors, inputs={"x": shape[: weight.ndim]})


def reader_of_words(batch: int | str = "batch") -> onnx.ModelProto:
    """Return a network of two inputs: six `words` of eleven, and five `features`."""
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "words"], ["embedded"], "/embedding/Gather"),
        make("MatMul", ["embedded", "w1"], ["hidden"], "/words/MatMul"),
        make("Relu", ["hidden"], ["active"], "/relu"),
        make("ReduceMean", ["active"], ["pooled"], "/mean", axes=[1], keepdims=0),
        make("Gemm", ["features", "w2", "b2"], ["other"], "/features/Gemm"),
        make("Add", ["pooled", "other"], ["sum"], "/add"),
        make("Gemm", ["sum", "w3"], ["y"], "/head/Gemm"),
    ]
    tensors = {
        "table": random(11, 8),
        "w1": random(8, 16, seed=1),
        "w2": random(5, 16, seed=2),
        "b2": random(16, seed=3),
        "w3": random(16, 4, seed=4),
    }
    inputs = {"words": (batch, 6), "features": (batch, 5)}
    return network(nodes, tensors, inputs=inputs, types={"words": TensorProto.INT64})


def words_and_features(count: int) -> dict[str, np.ndarray]:
    """Return inputs for `reader_of_words`."""
    words = np.random.default_rng(7).integers(0, 11, (count, 6))
    return {"words": words, "features": random(count, 5, seed=8)}


def matrix(form: str) -> onnx.ModelProto:
    """Return a network with a product of its input, (batch, 7), and a weight."""
    inputs = {"x": ("batch", 7)}
    make = helper.make_node
    match form:
        case "gemm":
            tensors = {"w": random(5, 7), "b": random(5, seed=1)}
            nodes = [make("Gemm", ["x", "w", "b"], ["y"], "fc", transB=1)]
        case "gemm with factors":
            tensors = {"w": random(7, 5), "b": random(1, 5, seed=1)}
            nodes = [make("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, beta=2.0)]
        case "matmul":
            tensors = {"w": random(7, 5)}
            nodes = [make("MatMul", ["x", "w"], ["y"], "fc")]
        case "matmul and bias":
            tensors = {"w": random(7, 5), "b": random(5, seed=1)}
            nodes = [make("MatMul", ["x", "w"], ["h"], "fc"), make("Add", ["b", "h"], ["y"])]
        case "tokens":
            inputs = {"x": ("batch", 3, 7)}
            tensors = {"w": random(7, 5), "b": random(5, seed=1)}
            nodes = [make("MatMul", ["x", "w"], ["h"], "fc"), make("Add", ["h", "b"], ["y"])]
        case "flattened map":
            inputs = {"x": ("batch", 6, 3, 2)}
            tensors = {"w": random(5, 36), "b": random(5, seed=1)}
            nodes = [
                make("Flatten", ["x"], ["f"], "flatten"),
                make("Gemm", ["f", "w", "b"], ["y"], "fc", transB=1),
            ]
        case "reshaped map":
            inputs = {"x": ("batch", 6, 3, 2)}
            tensors = {"w": random(36, 5), "b": random(5, seed=1), "s": np.array([-1, 36])}
            nodes = [
                make("Reshape", ["x", "s"], ["f"], "flatten"),
                make("MatMul", ["f", "w"], ["h"], "fc"),
                make("Add", ["h", "b"], ["y"], "bias"),
            ]
    return network(nodes, tensors, inputs=inputs)


MATRICES = ("gemm", "gemm with factors", "matmul", "matmul and bias", "tokens")
MATRICES += ("flattened map", "reshaped map")

CONVOLUTIONS = {
    "plain": (random(8, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    "without bias": (random(8, 6, 3, 3), {"bias": False}),
    "strided and dilated": (
        random(8, 6, 3, 3),
        {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 1, 2]},
    ),
    "grouped": (random(8, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "asymmetric padding": (random(8, 6, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "same upper": (random(8, 6, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": (random(8, 6, 4, 4), {"auto_pad": "SAME_LOWER"}),
    "valid": (random(8, 6, 3, 3), {"auto_pad": "VALID"}),
    "pointwise": (random(8, 6, 1, 1), {}),
    "pointwise with a stride": (random(8, 6, 1, 1), {"strides": [2, 2]}),
    "one axis": (random(8, 6, 3), {"pads": [1, 1]}),
    "one axis, asymmetric": (random(8, 6, 4), {"pads": [0, 3], "strides": [2]}),
    "rectangular": (random(8, 6, 1, 5), {"pads": [0, 2, 0, 2]}),
}
