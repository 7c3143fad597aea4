"""Costs that a target bounds."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lowrank
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.layers import Layer, LayerTable
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.int8 import Quantizer, noise_for
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.bounds import LatencyBound, bounds_of
from lowrank.ranks.latency_model import Latencies
from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network
from lowrank.zoo.registry import network_spec


def bound_for(target, **options):
    settings = rank_settings({"select": "budget", "target": target})
    (bound,) = bounds_of(settings, {}, **options)
    return bound


@pytest.mark.seconds
def test_bytes_match_the_exported_file(tmp_path: Path):
    torch.manual_seed(0)
    network, spec = create_network("resnet20"), network_spec("resnet20")
    table = find_layers(network, spec.input_shape, "resnet20")
    path, small = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(network, spec, path)
    Quantizer(path, [noise_for(path)], QuantizeSettings(), tmp_path).write(small)
    in_float = bound_for({"size_bytes": 0.5})
    in_int8 = bound_for({"size_bytes": 0.5}, quantized=True)
    assert in_float.of_network(table) == pytest.approx(path.stat().st_size, rel=0.02)
    layers = sum(map(in_int8.of_dense, table.layers))
    assert layers == pytest.approx(small.stat().st_size, rel=0.1)
    # Half of the float file is larger than the complete int8 file.
    assert in_int8.of_network(table) == in_float.of_network(table)
    assert in_int8.share_of_layers(table) > 1 > in_float.share_of_layers(table)


def test_the_limit_is_converted_to_the_sum_of_layers():
    layer = Layer(8, 8, (3, 3), padding=(1, 1), name="conv", input_map=(8, 8))
    table = LayerTable("net", (8, 8, 8), (layer,))
    # The network takes half of the sum over its layers. In int8, the limit is a quarter of 4 ms.
    latencies = Latencies(4.0, 0.5, {}).with_whole([(1.0, 0.5), (4.0, 2.0)])
    bound = LatencyBound("latency_ms.board", 0.25, latencies)
    assert bound.of_network(table) == 4.0
    assert bound.limit(table) == pytest.approx(2.0)
    assert bound.share_of_network(table, 2.0) == pytest.approx(0.25)
    assert bound.rest == 0.5


def test_cost_of_a_transposed_convolution():
    """Each of 8 x 8 inputs meets a 3 x 3 kernel from 4 to 6 channels, for any stride."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, stride=2), nn.Flatten()
    )
    table = find_layers(network, (3, 8, 8), "decoder")
    transposed = table["1"]
    assert transposed.dense_macs == 8 * 8 * 4 * 6 * 9
    bound = bound_for({"macs": 0.75})
    assert bound.of_dense(transposed) == transposed.dense_macs
    assert bound.of_network(table) == sum(layer.dense_macs for layer in table.layers)


def test_a_target_holds_for_a_network_with_a_transposed_convolution():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 8, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    ranks = {"select": "budget", "target": {"macs": 0.75}}
    small = lowrank.compress(network, (3, 8, 8), ranks=ranks, images=[torch.randn(8, 3, 8, 8)])
    total = sum(layer.dense_macs for layer in find_layers(network, (3, 8, 8), "net").layers)
    saved = sum(layer.macs[0] - layer.macs[1] for layer in small.layers)
    assert 0.72 < 1 - saved / total <= 0.75
