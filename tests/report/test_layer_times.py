"""The time of a network by original layer."""

import pytest

from lowrank.core.layers import REST, Layer, LayerTable, PlainLayer
from lowrank.core.plans import Factored
from lowrank.report.layer_times import times_by_layer

TABLE = LayerTable(
    "net",
    (3, 8, 8),
    (
        Layer(3, 8, (3, 3), name="first", input_map=(8, 8)),
        Layer(8, 8, (3, 3), name="second", input_map=(8, 8)),
        Layer(8, 8, name="pointwise", input_map=(8, 8)),
        Layer(8, 4, name="fused", kind="linear"),
    ),
)
SEQUENCE = (PlainLayer(8, 2), PlainLayer(2, 2, (3, 3)), PlainLayer(2, 8))
FACTORED = {"second": Factored("tucker2", (2, 2), 0.1, SEQUENCE)}
ORIGINAL = {"first": 1.0, "second": 4.0, "pointwise": 0.5, "max_pool": 0.25, REST: 0.25}
COMPRESSED = {"first": 1.0, "second.0": 0.3, "second.1": 0.5, "second.2": 0.2, "pointwise": 0.5}


@pytest.fixture
def records():
    times = times_by_layer(TABLE, FACTORED, ORIGINAL, COMPRESSED | {REST: 0.4})
    return {record["layer"]: record for record in times}


def test_factors_count_for_their_layer(records):
    assert records["second"] == {
        "layer": "second",
        "original_ms": 4.0,
        "compressed_ms": 1.0,
        "pointwise_ms": 0.5,
        "speedup": 4.0,
    }


def test_the_time_of_a_1_x_1_convolution_is_all_pointwise(records):
    assert records["pointwise"]["pointwise_ms"] == 0.5
    assert records["first"]["pointwise_ms"] == 0


def test_nodes_that_belong_to_no_layer_count_as_the_rest(records):
    assert records[REST]["original_ms"] == 0.5
    assert records[REST]["compressed_ms"] == 0.4


def test_a_layer_without_time_of_its_own_has_no_speedup(records):
    assert records["fused"]["speedup"] is None


def test_the_times_of_all_layers_add_up_to_the_total(records):
    assert sum(record["original_ms"] for record in records.values()) == sum(ORIGINAL.values())
    assert sum(record["compressed_ms"] for record in records.values()) == pytest.approx(2.9)
