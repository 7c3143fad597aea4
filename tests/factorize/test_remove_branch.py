"""Removal of the branch of a residual block."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lowrank
from lowrank.core.layers import Layer
from lowrank.factorize import get_factorization
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.curves import rank_choices
from lowrank.surgery.finding import find_layers

SHAPE = (3, 12, 12)
HALF = {"select": "budget", "negligible": 0, "largest_drop": 1}


class Block(nn.Module):
    """A residual block whose branch matters by a factor."""

    def __init__(self, scale: float, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.relu, self.inplace = nn.ReLU(inplace=inplace), inplace
        nn.init.constant_(self.norm2.weight, scale)
        nn.init.constant_(self.norm2.bias, 0.3)

    def forward(self, inputs):
        outputs = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(inputs)))))
        if self.inplace:
            outputs = self.relu(outputs)
        return torch.relu(outputs + inputs)


def residual_network(*, inplace: bool = False) -> nn.Module:
    """Return a network of three blocks, of which the second one matters least."""
    torch.manual_seed(0)
    blocks = [Block(scale, inplace=inplace) for scale in (1.0, 0.01, 1.0)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


def images():
    torch.manual_seed(1)
    return [torch.randn(32, *SHAPE) for _ in range(2)]


def without_one_branch(network, **options):
    """Remove the branch that loses least, which saves a third of the blocks' MACs."""
    ranks = HALF | {"target": {"macs": 0.72}}
    return lowrank.compress(
        network,
        SHAPE,
        factorize={"conv": "remove_branch"},
        ranks=ranks,
        images=images(),
        **options,
    )


def test_the_table_names_layers_whose_output_is_only_added():
    table = find_layers(residual_network(), SHAPE, "net")
    assert [layer.name for layer in table.layers if layer.is_added] == [
        *("1.conv2", "2.conv2", "3.conv2")
    ]
    assert [layer.name for layer in table.branch(table["2.conv2"])] == ["2.conv1"]
    # A rectified output is no constant that an addition could take.
    table = find_layers(residual_network(inplace=True), SHAPE, "net")
    assert not any(layer.is_added for layer in table.layers)


def test_the_branch_that_matters_least_is_removed(tmp_path):
    network = residual_network()
    small = without_one_branch(network)
    replaced = {layer.name: layer.ranks for layer in small.layers if not layer.is_dense}
    assert replaced == {"2.conv2": (1,)}
    (branch,) = (layer for layer in small.layers if layer.name == "2.conv1")
    assert branch.macs[1] == branch.parameters[1] == 0
    assert branch.notes == ("removed with the branch that it belongs to",)
    dense = 12 * 12 * 16 * 16 * 9
    assert small.macs[0] - small.macs[1] == 2 * dense
    expected, outputs = network(images()[0]), small.network(images()[0])
    assert (outputs - expected).norm() < 0.01 * expected.norm()
    small.export(tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1 + 4
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (exported,) = session.run(None, {"images": images()[0].numpy()})
    np.testing.assert_allclose(exported, outputs.detach(), atol=1e-5)


def test_an_onnx_file_loses_the_same_branch(tmp_path):
    network = residual_network()
    torch.onnx.export(network, (images()[0],), tmp_path / "net.onnx", dynamo=True)
    samples = [batch.numpy() for batch in images()]
    small = lowrank.compress(
        tmp_path / "net.onnx",
        factorize={"conv": "remove_branch"},
        ranks=HALF | {"target": {"macs": 0.72}},
        images=samples,
    )
    replaced = [layer.name for layer in small.layers if not layer.is_dense]
    assert len(replaced) == 1
    assert small.macs[0] - small.macs[1] == 2 * 12 * 12 * 16 * 16 * 9
    small.export(tmp_path / "small.onnx")
    run = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    name = run.get_inputs()[0].name
    expected = network(images()[0]).detach().numpy()
    (outputs,) = run.run(None, {name: samples[0]})
    assert np.linalg.norm(outputs - expected) < 0.01 * np.linalg.norm(expected)
    assert sum(node.op_type == "Conv" for node in small.network.graph.node) == 1 + 4


def test_two_constants_are_never_added():
    """One term of a sum stays, because it gives the sum its shape."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)

        def forward(self, inputs):
            return self.first(inputs) + self.second(inputs)

    network = nn.Sequential(nn.Conv2d(3, 16, 3), Sum(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    table = find_layers(network.eval(), SHAPE, "net")
    assert [layer.name for layer in table.layers if layer.is_added] == ["1.first"]


def test_multiples_and_minimum_do_not_apply_to_it():
    layer = Layer(64, 64, (3, 3), padding=(1, 1), name="conv", input_map=(8, 8), is_added=True)
    rule = rank_settings({"select": "vbmf", "multiple_of": 16, "minimum": 16})
    assert rank_choices(layer, get_factorization("remove_branch"), (2,), rule) == [(1,)]


def test_the_constant_is_trained_and_its_kernel_is_not():
    small = without_one_branch(residual_network())
    small.network.train()
    small.network(images()[0]).square().sum().backward()
    constant = small.network.get_submodule("2.conv2")[0]
    assert constant.bias.grad.abs().sum() > 0
    assert [name for name, _ in constant.named_parameters()] == ["bias"]
    assert small.network.get_submodule("2.conv1").weight.grad is None


@pytest.mark.parametrize("layers", [["remove_branch"], ["spatial_svd", "remove_branch"]])
def test_a_target_is_met_with_alternatives(layers):
    ranks = HALF | {"target": {"macs": 0.5}, "multiple_of": 4}
    factorize = {"conv": "tucker2", "alternatives": layers}
    small = lowrank.compress(
        residual_network(), SHAPE, factorize=factorize, ranks=ranks, images=images()
    )
    assert small.macs[1] <= 0.5 * small.macs[0]
    assert "remove_branch" in {layer.factorization for layer in small.layers if not layer.is_dense}
