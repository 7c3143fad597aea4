"""Latencies of layers, interpolated from a grid of measurements."""

import numpy as np
import pytest

from lowrank.core.layers import Layer, PlainLayer
from lowrank.factorize import get_factorization, grouped_sequence
from lowrank.ranks.latency_model import Geometry, Latencies, grids_for

LAYER = Layer(64, 128, (3, 3), stride=(2, 2), padding=(1, 1), name="conv", input_map=(16, 16))


def sequences(name, *ranks):
    method = get_factorization(name)
    return [(grouped_sequence(method, LAYER, choice), LAYER.input_map) for choice in ranks]


def multiply_accumulates(layers):
    return [plain.macs(input_map) / 1e6 for plain, input_map in layers]


@pytest.mark.parametrize("name", ["tucker2", "spatial_svd", "channel_svd"])
def test_bilinear_latencies_are_exact(name):
    full = get_factorization(name).full_ranks(LAYER)
    lowest = (16,) * len(full)
    grids = grids_for([*sequences(name, lowest, full), ([LAYER], LAYER.input_map)])
    latencies = Latencies.measured(9.0, 0.25, grids, multiply_accumulates)
    for ranks in (lowest, tuple(rank // 2 + 3 for rank in full), full):
        ((sequence, input_map),) = sequences(name, ranks)
        expected, current_map = 0.0, input_map
        for plain in sequence:
            expected += plain.macs(current_map) / 1e6
            current_map = plain.output_map(current_map)
        assert latencies.milliseconds(sequence, input_map) == pytest.approx(expected)
    assert latencies.milliseconds([LAYER], LAYER.input_map) == pytest.approx(LAYER.dense_macs / 1e6)
    assert latencies.rest_ms == 0.25


def test_layers_with_one_group_per_channel_have_one_axis():
    grids = grids_for(sequences("cp_tpm", (16,), (200,)))
    (geometry,) = [geometry for geometry in grids if geometry.kernel == (3, 3)]
    assert geometry.groups == 0
    cells = grids[geometry].cells(geometry)
    assert all(cell.in_channels == cell.out_channels == cell.groups for cell in cells)
    latencies = Latencies.measured(9.0, 0.0, grids, multiply_accumulates)
    ((sequence, input_map),) = sequences("cp_tpm", (100,))
    assert latencies.milliseconds(sequence[1:2], input_map) == pytest.approx(
        sequence[1].macs(input_map) / 1e6
    )


def test_grid_points_suit_vector_units_and_groups():
    layer = PlainLayer(120, 240, (3, 3), groups=3)
    small = PlainLayer(6, 12, (3, 3), groups=3)
    ((geometry, grid),) = grids_for([([layer], (8, 8)), ([small], (8, 8))]).items()
    assert geometry == Geometry.of(layer, (8, 8))
    assert (grid.inputs[0], grid.inputs[-1]) == (6, 120)
    assert (grid.outputs[0], grid.outputs[-1]) == (12, 240)
    assert all(count % 48 == 0 for count in (*grid.inputs[1:-1], *grid.outputs[1:-1]))
    assert all(plain.in_channels % 3 == 0 for plain in grid.cells(geometry))


def test_json_round_trip():
    grids = grids_for([*sequences("cp_tpm", (16,), (200,)), ([LAYER], LAYER.input_map)])
    before = Latencies.measured(9.0, 0.25, grids, multiply_accumulates).with_whole([(2.0, 1.0)])
    after = Latencies.from_json(before.to_json())
    assert after.rest_ms == before.rest_ms
    assert after.original_ms == before.original_ms
    assert after.whole == before.whole
    assert after.grids.keys() == before.grids.keys()
    for geometry, (grid, measured) in before.grids.items():
        assert after.grids[geometry][0] == grid
        np.testing.assert_array_equal(after.grids[geometry][1], measured)


def test_measured_networks_correct_the_sum_of_their_layers():
    latencies = Latencies(9.0, 0.25, {})
    assert latencies.in_one_piece(0.7) == latencies.by_layers(0.7) == 0.7
    latencies = latencies.with_whole([(4.0, 3.0), (1.0, 0.5), (2.0, 1.2)])
    for by_layers, in_one_piece in ((1.0, 0.5), (2.0, 1.2), (4.0, 3.0), (0.5, 0.25), (8.0, 6.0)):
        assert latencies.in_one_piece(by_layers) == pytest.approx(in_one_piece)
        assert latencies.by_layers(in_one_piece) == pytest.approx(by_layers)
    assert 0.5 < latencies.in_one_piece(1.5) < 1.2
    assert latencies.by_layers(latencies.in_one_piece(1.5)) == pytest.approx(1.5)
