"""Layers that stay dense because they are too cheap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.layers import Layer, LayerTable
from lowrank.ranks.negligible import leave_negligible
from lowrank.surgery.finding import layer_table


def table(*layers):
    return LayerTable("net", (3, 32, 32), layers)


def left_dense(before, share):
    after = leave_negligible(before, share)
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    return [
        layer
        for layer, original in zip(after.layers, before.layers, strict=True)
        if layer.not_factored != original.not_factored
    ]


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_the_classifier_of_ten_classes_stays_dense(name):
    (left,) = left_dense(layer_table(name), 0.005)
    assert left.kind == "linear"
    assert left.not_factored.endswith("of the parameters: nothing to gain")


def test_the_reason_states_both_shares():
    large = Layer(99, 100, name="large", kernel=(1, 1), input_map=(10, 10))
    small = Layer(10, 10, name="small", kernel=(1, 1), input_map=(10, 10))
    (left,) = left_dense(table(large, small), 0.02)
    assert left.name == "small"
    assert left.not_factored == (
        "it has 1.00% of the MACs and 1.00% of the parameters: nothing to gain"
    )


def test_few_weights_on_a_large_map_are_not_negligible():
    first = Layer(3, 8, name="first", kernel=(3, 3), padding=(1, 1), input_map=(224, 224))
    last = Layer(512, 1000, name="last", kind="linear")
    assert left_dense(table(first, last), 0.05) == []


def test_layers_that_cannot_be_factored_keep_their_reason():
    tiny = Layer(4, 4, name="tiny", not_factored="depthwise")
    after = leave_negligible(table(tiny, Layer(64, 64, name="large")), 0.5)
    assert after["tiny"].not_factored == "depthwise"


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16)), min_size=1),
    st.floats(0, 0.99),
)
def test_excluded_layers_together_stay_within_the_share(shapes, share):
    before = table(
        *(
            Layer(inputs, outputs, name=f"layer{i}", input_map=(side, side))
            for i, (inputs, outputs, side) in enumerate(shapes)
        )
    )
    left = left_dense(before, share)
    for cost in ("dense_macs", "parameters"):
        total = sum(getattr(layer, cost) for layer in before.layers)
        assert sum(getattr(layer, cost) for layer in left) <= share * total * (1 + 1e-9)
