"""What a target bounds."""

from pathlib import Path

import pytest
import torch

from lowrank.latency import Latencies
from lowrank.networks import create_network
from lowrank.networks.export import export_onnx
from lowrank.networks.int8 import Quantizer, noise_for
from lowrank.networks.layers import find_layers
from lowrank.networks.registry import network_spec
from lowrank.params import QuantizeSettings
from lowrank.plan import Layer, LayerTable
from lowrank.ranks.base import rank_settings
from lowrank.ranks.bounds import LatencyBound, bounds_of


def bound_for(target, **options):
    settings = rank_settings({"select": "budget", "target": target})
    (bound,) = bounds_of(settings, {}, **options)
    return bound


def test_bytes_are_those_of_the_exported_file(tmp_path: Path):
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
    # Half of the file in float is more than all of it in int8.
    assert in_int8.of_network(table) == in_float.of_network(table)
    assert in_int8.share_of_layers(table) > 1 > in_float.share_of_layers(table)


def test_milliseconds_in_one_piece_bound_the_sum_of_layers():
    layer = Layer(8, 8, (3, 3), padding=(1, 1), name="conv", input_map=(8, 8))
    table = LayerTable("net", (8, 8, 8), (layer,))
    # Together layers take half of what they take one by one; in int8, a quarter of 4 ms.
    latencies = Latencies(4.0, 0.5, {}).with_whole([(1.0, 0.5), (4.0, 2.0)])
    bound = LatencyBound("latency_ms.board", 0.25, latencies)
    assert bound.of_network(table) == 4.0
    assert bound.limit(table) == pytest.approx(2.0)
    assert bound.share_of_network(table, 2.0) == pytest.approx(0.25)
    assert bound.rest == 0.5
