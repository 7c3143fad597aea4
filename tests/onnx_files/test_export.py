import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small import SPEC, logits_of, small_network, with_used_statistics
from torch import nn
from vit import vit

from lowrank.core.layers import PlainLayer
from lowrank.errors import UserError
from lowrank.onnx_files import export
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.surgery.finding import find_layers
from lowrank.surgery.states import replace_layer
from lowrank.tasks.outputs import outputs_from
from lowrank.zoo import NetworkSpec, create_network, network_spec
from lowrank.zoo.plain import fold


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_onnx(small_network(), SPEC, path)
    return path


def test_batch_normalization_is_folded_into_the_last_factor(exported: Path):
    graph = onnx.load(exported).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators == {"Conv": 5, "Relu": 2, "MaxPool": 1, "Reshape": 1, "Gemm": 1}
    biased = {node.name for node in graph.node if node.op_type == "Conv" and len(node.input) == 3}
    assert biased == {"0.2", "3.1"}


def test_nodes_have_the_names_of_the_layers(exported: Path):
    names = [node.name for node in onnx.load(exported).graph.node]
    assert {"0.0", "0.1", "0.2", "3.0", "3.1", "8"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_outputs_match_the_network_for_any_batch_size(exported: Path, batch: int):
    images = torch.randn(batch, 3, 8, 8)
    with torch.no_grad():
        expected = small_network().eval()(images).numpy()
    np.testing.assert_allclose(logits_of(exported, images), expected, atol=1e-5)


def test_batch_dimension_has_a_name(exported: Path):
    graph = onnx.load(exported).graph
    for value, name in ((graph.input[0], "images"), (graph.output[0], "logits")):
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("training", [True, False])
def test_network_is_not_changed(tmp_path: Path, training: bool):
    network = small_network().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export_onnx(network, SPEC, tmp_path / "small.onnx")
    assert all(module.training == training for module in network.modules())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_memory_format_of_the_weights_does_not_matter(exported: Path, tmp_path: Path):
    network = small_network().to(memory_format=torch.channels_last)
    export_onnx(network, SPEC, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.seconds
def test_equal_networks_give_equal_bytes_in_another_process_and_folder(
    exported: Path, tmp_path: Path
):
    script = (
        "from small import SPEC, small_network; from lowrank.onnx_files.export import export_onnx;"
        "export_onnx(small_network(), SPEC, 'small.onnx')"
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(tests)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout + result.stderr == ""
    content = (tmp_path / "small.onnx").read_bytes()
    assert content == exported.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert os.fsencode(tmp_path) not in content


def test_only_one_file_is_written(exported: Path):
    assert list(exported.parent.iterdir()) == [exported]


def test_resnet_has_only_standard_operators(tmp_path: Path):
    torch.manual_seed(0)
    network = with_used_statistics(create_network("resnet20")).eval()
    export_onnx(network, network_spec("resnet20"), tmp_path / "resnet20.onnx")
    graph = onnx.load(tmp_path / "resnet20.onnx").graph
    assert Counter(node.op_type for node in graph.node) == {
        "Conv": 19, "Relu": 19, "Add": 9, "Slice": 4, "Pad": 2,
        "ReduceMean": 1, "Reshape": 1, "Gemm": 1,
    }  # fmt: skip
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = network(images).numpy()
    logits = logits_of(tmp_path / "resnet20.onnx", images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


class ConvolutionAndFunction(nn.Module):
    """Network with a convolution and a given function after it."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(images))


def branch_on_values(maps):
    if maps.sum() > 0:
        return maps.flatten(1)
    return -maps.flatten(1)


def singular_values(maps):
    return torch.linalg.svd(maps)[1].flatten(1)


@pytest.mark.parametrize(
    ("function", "operation", "line"),
    [
        (branch_on_values, "Could not guard on data-dependent expression", "if maps.sum() > 0:"),
        (singular_values, "aten._linalg_svd", "return self.function(self.conv(images))"),
    ],
)
def test_message_names_the_line_that_onnx_cannot_express(
    tmp_path, capfd, function, operation, line
):
    with pytest.raises(UserError, match=r"bad\.onnx: network 'small' cannot be exported") as caught:
        export_onnx(ConvolutionAndFunction(function), SPEC, tmp_path / "bad.onnx")
    assert operation in str(caught.value)
    assert "test_export.py, line" in str(caught.value)
    assert line in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda maps: torch.stack([image.flatten() for image in maps]),
        lambda maps: maps.reshape(2, -1),
    ],
)
def test_network_for_one_batch_size_is_rejected(tmp_path: Path, function):
    with pytest.raises(UserError, match=r"bad\.onnx: network 'small' only supports one batch size"):
        export_onnx(ConvolutionAndFunction(function), SPEC, tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda maps: (maps.flatten(1), maps.mean((2, 3))), ["output0", "output1"]),
        (lambda maps: {"scores": maps.mean((2, 3)), "maps": maps + 1}, ["scores", "maps"]),
    ],
)
def test_several_outputs_have_names(tmp_path: Path, function, names):
    network = ConvolutionAndFunction(function)
    export_onnx(network, SPEC, tmp_path / "several.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "several.onnx")
    assert [output.name for output in session.get_outputs()] == names
    images = torch.randn(3, *SPEC.input_shape)
    values = session.run(None, {"images": images.numpy()})
    expected = outputs_from(network(images))
    for name, value in zip(names, values, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected[name].detach())


class OnTokens(nn.Module):
    """Network with linear layers on tokens and a mean over a map in channels-last order."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 4, bias=False)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.down(torch.relu(self.up(images.permute(0, 2, 3, 1))))
        return self.head(torch.flatten(self.pool(tokens.permute(0, 3, 1, 2)), 1))


def test_layers_on_tokens_are_exported_as_named_standard_operators(tmp_path: Path):
    torch.manual_seed(0)
    network = OnTokens().eval()
    export_onnx(network, SPEC, tmp_path / "tokens.onnx")
    graph = onnx.load(tmp_path / "tokens.onnx").graph
    assert Counter(node.op_type for node in graph.node) == {
        "Transpose": 2, "MatMul": 2, "Add": 1, "Relu": 1, "ReduceMean": 1, "Reshape": 1, "Gemm": 1,
    }  # fmt: skip
    names = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert names == ["up", "down", "head"]
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "tokens.onnx", images), expected, atol=1e-6)


def test_factors_on_a_flattened_map_are_exported_as_standard_operators(tmp_path: Path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    sequence = (PlainLayer(4, 2), PlainLayer(2, 3, (6, 6)), PlainLayer(3, 5, bias=True))
    replace_layer(network, "2", sequence)
    export_onnx(network, SPEC, tmp_path / "map.onnx")
    graph = onnx.load(tmp_path / "map.onnx").graph
    assert {node.op_type for node in graph.node} == {"Conv", "Reshape"}
    assert [n.name for n in graph.node if n.op_type == "Conv"] == ["0", "2.0", "2.1", "2.2"]
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "map.onnx", images), expected, atol=1e-6)


@pytest.mark.seconds
def test_weights_that_do_not_fit_into_one_file(exported: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_BYTES", 1000)
    with pytest.raises(
        UserError, match=r"the weights of network 'small' take .* Choose lower ranks"
    ):
        export_onnx(small_network(), SPEC, tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []
    export_onnx(small_network(), SPEC, tmp_path / "small.onnx", external_data=True)
    model, data = sorted(tmp_path.iterdir())
    assert (model.name, data.name) == ("small.onnx", "small.onnx.data")
    images = torch.randn(3, 3, 8, 8)
    assert np.array_equal(logits_of(model, images), logits_of(exported, images))
    assert b"site-packages" not in model.read_bytes()
    in_one, in_two = count(exported), count(model)
    assert (in_two.parameters, in_two.macs) == (in_one.parameters, in_one.macs)
    assert in_two.size_bytes == model.stat().st_size + data.stat().st_size


@pytest.mark.parametrize("replaced", [False, True])
def test_projections_of_attention_are_nodes_with_the_names_of_the_layers(
    tmp_path: Path, replaced: bool
):
    network = vit().eval()
    images = torch.randn(3, 3, 32, 32)
    expected = network(images).detach().numpy()
    names = [
        f"encoder.layers.encoder_layer_{block}.self_attention.{name}"
        for block in range(2)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    if replaced:
        fold(network)
        for name in names:
            layer = network.get_submodule(name)
            replace_layer(network, name, [PlainLayer(16, 16), PlainLayer(16, 16, bias=True)])
            first, second = network.get_submodule(name)
            # Equal weights would be written once, so take a different basis for each layer.
            nn.init.orthogonal_(first.weight)
            second.load_state_dict(
                {"weight": layer.weight @ first.weight.detach().T, "bias": layer.bias}
            )
        names = [f"{name}.{index}" for name in names for index in range(2)]
    spec = NetworkSpec("vit", (3, 32, 32), num_classes=10)
    export_onnx(network, spec, tmp_path / "vit.onnx")
    np.testing.assert_allclose(logits_of(tmp_path / "vit.onnx", images), expected, atol=1e-5)
    graph = onnx.load(tmp_path / "vit.onnx").graph
    assert set(names) <= {node.name for node in graph.node}
    fold(network)
    table = find_layers(network, (3, 32, 32), "vit")
    # The two products of queries, keys and values in each block come on top.
    products = 2 * 2 * 17 * 17 * 16
    assert count(tmp_path / "vit.onnx").macs == products + sum(
        layer.dense_macs for layer in table.layers
    )
