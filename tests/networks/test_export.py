import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import SPEC, logits_of, small_network, with_used_statistics
from torch import nn

from lowrank.errors import UserError
from lowrank.networks import create_network, network_spec
from lowrank.networks.export import export_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_onnx(small_network(), SPEC, path)
    return path


def test_batch_normalisation_is_folded_into_the_last_of_several_convolutions(exported: Path):
    graph = onnx.load(exported).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators == {"Conv": 5, "Relu": 2, "MaxPool": 1, "Reshape": 1, "Gemm": 1}
    biased = {node.name for node in graph.node if node.op_type == "Conv" and len(node.input) == 3}
    assert biased == {"0.2", "3.1"}


def test_nodes_bear_the_names_of_the_layers(exported: Path):
    names = [node.name for node in onnx.load(exported).graph.node]
    assert {"0.0", "0.1", "0.2", "3.0", "3.1", "8"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_what_the_network_gives(exported: Path, batch: int):
    images = torch.randn(batch, 3, 8, 8)
    with torch.no_grad():
        expected = small_network().eval()(images).numpy()
    np.testing.assert_allclose(logits_of(exported, images), expected, atol=1e-5)


def test_the_batch_dimension_is_named(exported: Path):
    graph = onnx.load(exported).graph
    for value, name in ((graph.input[0], "images"), (graph.output[0], "logits")):
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(tmp_path: Path, training: bool):
    network = small_network().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export_onnx(network, SPEC, tmp_path / "small.onnx")
    assert all(module.training == training for module in network.modules())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_memory_order_of_the_weights_does_not_matter(exported: Path, tmp_path: Path):
    network = small_network().to(memory_format=torch.channels_last)
    export_onnx(network, SPEC, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").read_bytes() == exported.read_bytes()


def test_other_processes_and_folders_write_the_same_bytes(exported: Path, tmp_path: Path):
    script = (
        "from small import SPEC, small_network; from lowrank.networks.export import export_onnx;"
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


def test_one_file_is_all_there_is(exported: Path):
    assert list(exported.parent.iterdir()) == [exported]


def test_resnet_holds_plain_operators_alone(tmp_path: Path):
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
    found = logits_of(tmp_path / "resnet20.onnx", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_network_that_looks_at_values_is_a_user_error(tmp_path: Path, capfd):
    class Undecided(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    with pytest.raises(UserError, match=r"bad\.onnx: network 'small' cannot be expressed"):
        export_onnx(Undecided(), SPEC, tmp_path / "bad.onnx")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
