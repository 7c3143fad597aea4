from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lowrank.errors import UserError
from lowrank.onnx_files.counts import LayerCount, count
from lowrank.onnx_files.export import export_onnx
from lowrank.zoo import NetworkSpec, create_network, network_spec


def tensor(name: str, *shape: int, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def save(
    path: Path, nodes: list, tensors: list, *, image: list, output_rank: int, opset: int = 18
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"] * output_rank)],
        tensors,
    )
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def fresh_export(name: str, path: Path) -> Path:
    network = create_network(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)  # the export omits a bias of zeros
    export_onnx(network, network_spec(name), path)
    return path


def test_counts_match_hand_computed_values(tmp_path: Path):
    nodes = [
        # 8 output channels, strides 2 and 1, 2 groups: output map 5 x 10, kernel 2 x 3 x 1
        helper.make_node(
            "Conv", ["images", "kernel", "bias"], ["maps"], "conv", group=2, strides=[2, 1],
            pads=[1, 0, 1, 0],
        ),
        helper.make_node("Relu", ["maps"], ["active"], "relu"),
        helper.make_node("Reshape", ["active", "shape"], ["flat"], "reshape"),
        helper.make_node("MatMul", ["flat", "matrix"], ["hidden"], "matmul"),
        helper.make_node("Gemm", ["hidden", "weight", "offset"], ["logits"], "gemm", transB=1),
    ]  # fmt: skip
    shape = numpy_helper.from_array(np.array([-1, 400]), "shape")
    tensors = [
        tensor("kernel", 8, 2, 3, 1), tensor("bias", 8), shape, tensor("matrix", 400, 6),
        tensor("weight", 3, 6), tensor("offset", 3),
    ]  # fmt: skip
    path = save(
        tmp_path / "a.onnx", nodes, tensors, image=["batch", 4, 10, 10], output_rank=2
    )  # fmt: skip
    counts = count(path)
    assert counts.layers == [
        LayerCount("conv", "Conv", 8 * 2 * 3 + 8, 8 * 5 * 10 * (2 * 3)),
        LayerCount("matmul", "MatMul", 400 * 6, 400 * 6),
        LayerCount("gemm", "Gemm", 3 * 6 + 3, 3 * 6),
    ]
    assert counts.parameters == 56 + 2400 + 21
    assert counts.macs == 2400 + 2400 + 18
    assert counts.size_bytes == path.stat().st_size


def test_weights_in_constant_nodes_are_counted(tmp_path: Path):
    nodes = [
        helper.make_node("Constant", [], ["kernel"], "constant", value=tensor("", 5, 3, 1, 1)),
        helper.make_node("Constant", [], ["bias"], "floats", value_floats=[1.0] * 5),
        helper.make_node("Conv", ["images", "kernel", "bias"], ["logits"], "conv"),
    ]
    path = save(tmp_path / "a.onnx", nodes, [], image=["batch", 3, 4, 4], output_rank=4)
    counts = count(path)
    assert counts.layers == [LayerCount("conv", "Conv", 15 + 5, 5 * 4 * 4 * 3)]
    assert (counts.parameters, counts.macs) == (20, 240)


def test_shared_kernel_counts_once_for_parameters_and_twice_for_macs(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["middle"], "first"),
        helper.make_node("Conv", ["middle", "kernel"], ["logits"], "second"),
    ]
    path = save(
        tmp_path / "a.onnx", nodes, [tensor("kernel", 3, 3, 1, 1)], image=["batch", 3, 2, 2],
        output_rank=4,
    )  # fmt: skip
    counts = count(path)
    assert [(layer.parameters, layer.macs) for layer in counts.layers] == [(9, 36), (0, 36)]
    assert counts.parameters == 9


def test_transposed_gemm_sums_over_the_first_dimension(tmp_path: Path):
    nodes = [helper.make_node("Gemm", ["left", "right"], ["logits"], "gemm", transA=1)]
    tensors = [tensor("left", 7, 2), tensor("right", 7, 3)]
    path = save(tmp_path / "a.onnx", nodes, tensors, image=["batch", 1], output_rank=2)
    assert count(path).macs == 2 * 3 * 7


def node_macs(tmp_path: Path, node, tensors: list, *, image: list, opset: int = 18) -> int:
    """Return the MACs of a graph with one node, whose first output is `logits`."""
    path = save(tmp_path / "a.onnx", [node], tensors, image=image, output_rank=4, opset=opset)
    counts = count(path)
    assert counts.not_counted == ()
    return counts.macs


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(tmp_path: Path, groups: int):
    node = helper.make_node(
        "ConvTranspose", ["images", "kernel"], ["logits"], "up", strides=[2, 2], group=groups
    )
    kernel = tensor("kernel", 4, 6 // groups, 3, 3)
    macs = node_macs(tmp_path, node, [kernel], image=["batch", 4, 5, 7])
    assert macs == 5 * 7 * 4 * (6 // groups) * 9


@pytest.mark.parametrize(
    ("equation", "shape", "macs"),
    [
        # Batch of 1, 2 heads: 5 queries times 7 keys of width 3; then with an ellipsis.
        ("bhqd,hkd->bhqk", (2, 7, 3), 2 * 5 * 7 * 3),
        ("...qd,...kd->...qk", (1, 2, 7, 3), 2 * 5 * 7 * 3),
        # An elementwise product sums nothing: one multiplication per element.
        ("bhqd,hqd->bhqd", (2, 5, 3), 2 * 5 * 3),
    ],
)
def test_einsum_with_two_operands(tmp_path: Path, equation: str, shape: tuple, macs: int):
    node = helper.make_node("Einsum", ["images", "right"], ["logits"], "e", equation=equation)
    assert node_macs(tmp_path, node, [tensor("right", *shape)], image=["batch", 2, 5, 3]) == macs


def test_einsum_with_one_operand_has_no_macs(tmp_path: Path):
    node = helper.make_node("Einsum", ["images"], ["logits"], "e", equation="bhqd->bhdq")
    assert node_macs(tmp_path, node, [], image=["batch", 2, 5, 3]) == 0


def test_matmul_of_two_activations(tmp_path: Path):
    nodes = [
        helper.make_node("Transpose", ["images"], ["transposed"], "transpose", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["images", "transposed"], ["logits"], "scores"),
    ]
    path = save(tmp_path / "a.onnx", nodes, [], image=["batch", 2, 5, 3], output_rank=4)
    assert count(path).macs == 2 * 5 * 5 * 3


def test_attention_has_two_products(tmp_path: Path):
    node = helper.make_node("Attention", ["images", "keys", "values"], ["logits"], "attention")
    tensors = [tensor("keys", 1, 2, 7, 3), tensor("values", 1, 2, 7, 4)]
    macs = node_macs(tmp_path, node, tensors, image=["batch", 2, 5, 3], opset=23)
    # 2 heads: 5 queries times 7 keys of width 3, and 5 x 7 weights times values of width 4.
    assert macs == 2 * 5 * 7 * 3 + 2 * 5 * 7 * 4


def test_recurrent_layers_count_every_step(tmp_path: Path):
    nodes = [
        # Six steps of one sequence of 3 values: W x + R h for 4 gates with 5 units.
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "logits"], "lstm", hidden_size=5),
    ]
    transpose = helper.make_node("Transpose", ["images"], ["steps"], "transpose", perm=[1, 0, 2])
    nodes.insert(0, transpose)
    tensors = [tensor("w", 1, 20, 3), tensor("r", 1, 20, 5)]
    path = save(tmp_path / "a.onnx", nodes, tensors, image=["batch", 6, 3], output_rank=3)
    assert count(path).macs == 6 * (20 * 3 + 20 * 5)


def test_uncounted_operators_are_listed(tmp_path: Path):
    nodes = [
        helper.make_node("Einsum", ["images", "a", "b"], ["x"], "e", equation="bi,ij,jk->bk"),
        helper.make_node("Gelu", ["x"], ["y"], "own", domain="com.example"),
        helper.make_node("MatMul", ["images", "a"], ["logits"], "known"),
    ]
    tensors = [tensor("a", 3, 4), tensor("b", 4, 2)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        tensors,
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    counts = count(path)
    assert counts.not_counted == ("Einsum with 3 operands", "com.example.Gelu")
    assert counts.macs == 3 * 4


class Decoder(nn.Module):
    """Network with a transposed convolution and PyTorch's attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        tokens = self.up(images).flatten(2).transpose(1, 2)[:, None]  # (N, 1, 64, 8)
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(mixed.mean((1, 2)))


def test_exported_network_with_attention(tmp_path: Path):
    spec = NetworkSpec("decoder", (3, 4, 4), num_classes=10)
    export_onnx(Decoder().eval(), spec, tmp_path / "a.onnx")
    counts = count(tmp_path / "a.onnx")
    assert counts.macs == 4 * 4 * 3 * 8 * 4 + 2 * 64 * 64 * 8 + 8 * 10
    assert counts.not_counted == ()


def test_shapes_and_scalars_are_not_parameters(tmp_path: Path):
    nodes = [
        helper.make_node("Pad", ["images", "pads", "value"], ["padded"], "pad"),
        helper.make_node("Mul", ["padded", "scale"], ["logits"], "scale"),
    ]
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    tensors = [pads, tensor("value"), tensor("scale", 3, 1, 1)]
    path = save(tmp_path / "a.onnx", nodes, tensors, image=["batch", 3, 4, 4], output_rank=4)
    counts = count(path)
    assert counts.layers == [LayerCount("scale", "Mul", 3, 0)]
    assert (counts.parameters, counts.macs) == (3, 0)


@pytest.mark.seconds
def test_vgg16_counts_match_the_papers(tmp_path: Path):
    torch.manual_seed(0)
    counts = count(fresh_export("vgg16", tmp_path / "vgg16.onnx"))
    # (side of the map, input channels, output channels) of the thirteen 3 x 3 convolutions
    convolutions = [
        (32, 3, 64), (32, 64, 64),
        (16, 64, 128), (16, 128, 128),
        (8, 128, 256), (8, 256, 256), (8, 256, 256),
        (4, 256, 512), (4, 512, 512), (4, 512, 512),
        (2, 512, 512), (2, 512, 512), (2, 512, 512),
    ]  # fmt: skip
    macs = [side**2 * inputs * outputs * 9 for side, inputs, outputs in convolutions]
    # Each convolution has a bias from its folded batch normalization.
    parameters = [inputs * outputs * 9 + outputs for _, inputs, outputs in convolutions]
    assert [layer.macs for layer in counts.layers] == [*macs, 512 * 10]
    assert [layer.parameters for layer in counts.layers] == [*parameters, 512 * 10 + 10]
    assert counts.macs == 313_201_664
    assert counts.parameters == 14_719_818
    assert counts.layers[0].name == "features.conv1_1"
    assert counts.layers[-1].name == "classifier"


def test_resnet20_counts_match_the_paper(tmp_path: Path):
    torch.manual_seed(0)
    counts = count(fresh_export("resnet20", tmp_path / "resnet20.onnx"))
    first = 32**2 * 3 * 16 * 9
    stage1 = 6 * 32**2 * 16 * 16 * 9
    stage2 = 16**2 * (16 * 32 + 5 * 32 * 32) * 9
    stage3 = 8**2 * (32 * 64 + 5 * 64 * 64) * 9
    assert counts.macs == first + stage1 + stage2 + stage3 + 64 * 10 == 40_551_040
    kernels = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    biases = 7 * 16 + 6 * 32 + 6 * 64
    assert counts.parameters == kernels + biases + 64 * 10 + 10 == 269_034


def test_unknown_dimension_raises_user_error(tmp_path: Path):
    nodes = [helper.make_node("Conv", ["images", "kernel"], ["logits"], "conv")]
    path = save(
        tmp_path / "a.onnx", nodes, [tensor("kernel", 3, 3, 1, 1)],
        image=["batch", 3, "height", 4], output_rank=4,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"a\.onnx: the shape of 'logits' at node 'conv'"):
        count(path)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_damaged_file_raises_user_error(tmp_path: Path, content: bytes):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.onnx: not a complete ONNX model"):
        count(path)


def test_missing_file_raises_user_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.onnx: no such ONNX file"):
        count(tmp_path / "a.onnx")


def test_inconsistent_shapes_raise_user_error(tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["images", "matrix"], ["logits"], "matmul")]
    path = save(
        tmp_path / "a.onnx", nodes, [tensor("matrix", 4, 2)], image=["batch", 3], output_rank=2
    )
    with pytest.raises(UserError, match=r"a\.onnx: the shapes in this ONNX model are inconsistent"):
        count(path)
