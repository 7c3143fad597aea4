"""Test which layer a node in a profile belongs to."""

import onnx
import pytest
import torch
from torch import nn

from lowrank.config.device_kinds import create_device
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.node_layers import layers_of_nodes
from lowrank.zoo.registry import NetworkSpec


class Block(nn.Module):
    """Network that adds two branches of convolutions, with activations, pooling and classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        first = self.first(images).relu()
        both = (self.left(first) + self.right(first)).relu()
        return self.fc(nn.functional.max_pool2d(both, 8).flatten(1))


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    export_onnx(Block(), NetworkSpec("block", (3, 8, 8), 5), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_every_layer_is_found_in_the_profile(path):
    settings = {"threads": 1, "repeats": 5, "seconds": 0.0, "warmup_seconds": 0.0}
    nodes = create_device("local", settings).node_times(path, {})
    layers = layers_of_nodes(path)
    products = {name for name, node in nodes.items() if node.operator in ("Conv", "FusedConv")}
    products |= {name for name, node in nodes.items() if "Gemm" in node.operator}
    assert products <= layers.keys()
    assert {layers[name] for name in products} == {"first", "left", "right", "fc"}
    assert not {name for name in nodes if "pool" in name} & layers.keys()


def test_activations_and_sums_belong_to_the_preceding_layer(path):
    layers = layers_of_nodes(path)
    nodes = onnx.load(path).graph.node
    # Their names are those of their outputs, which differ between versions of the exporter.
    assert [layers[node.output[0]] for node in nodes if node.op_type == "Relu"] == [
        "first",
        "right",
    ]
    assert [layers[node.output[0]] for node in nodes if node.op_type == "Add"] == ["right"]
