"""A target of latency on this machine."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from lowrank.compression.latency_target import HERE, export_of_network, latencies_here
from lowrank.compression.module_network import ModuleNetwork
from lowrank.core.layers import narrowed
from lowrank.factorize import get_factorization, grouped_sequence
from lowrank.ranks.any_rule import rank_settings
from lowrank.tasks import get_task

RULE = rank_settings(
    {"select": "budget", "target": {"latency_ms": {HERE: 0.8}}, "multiple_of": 8, "negligible": 0}
)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 64, 10)
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_layers_with_removed_channels_have_latencies(int8):
    network = ModuleNetwork.of(chain(), (3, 12, 12), get_task("classification"))
    lines: list[str] = []
    layers = {"0": "tucker1", "2": "remove_channels"}
    measured = latencies_here(
        network, network.table, layers, [], RULE, int8=int8, say=lines.append
    )[HERE]
    feeder = network.table["0"]
    for channels in (8, 16):
        sequence = narrowed((feeder,), channels)
        assert 0 < measured.milliseconds(sequence, feeder.input_map) < 100
    # The networks in one piece have the removed channels removed.
    assert len(measured.whole) == 3
    assert np.isfinite(measured.whole).all()
    assert any("in one piece" in line for line in lines)


def test_random_factors_of_a_deep_network_stay_finite(tmp_path):
    """Infinite outputs would have no range in int8."""
    torch.manual_seed(0)
    layers = [module for _ in range(40) for module in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    network = ModuleNetwork.of(nn.Sequential(*layers), (8, 6, 6), get_task("classification"))
    method = get_factorization("tucker2")
    sequences = {
        layer.name: grouped_sequence(method, layer, (6, 6)) for layer in network.table.layers
    }
    images = np.random.default_rng(0).standard_normal((1, 8, 6, 6), dtype=np.float32)
    with export_of_network(network)(sequences, tmp_path / "deep.onnx") as file:
        (outputs,) = onnxruntime.InferenceSession(file).run(None, {"images": images})
    assert np.isfinite(outputs).all()
    assert np.abs(outputs).max() < 1e3
