import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lowrank.core.layers import (
    Layer,
    LayerTable,
    PlainLayer,
    sequence_macs,
    sequence_parameters,
    with_feeders,
)
from lowrank.core.plans import Factored, Plan, PlannedLayer
from lowrank.core.rounds import assign_factorizations, rounds_of
from lowrank.errors import UserError
from lowrank.files import write_json


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def plain_layers(draw):
    groups = draw(st.integers(1, 3))
    return PlainLayer(
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=draw(pairs(1, 4)),
        stride=draw(pairs(1, 3)),
        padding=draw(pairs(0, 3)),
        dilation=draw(pairs(1, 3)),
        groups=groups,
        bias=draw(st.booleans()),
    )


@given(plain_layers(), pairs(1, 12))
def test_geometry_and_costs_match_torch(layer, input_map):
    window_sizes = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    assume(
        all(m + 2 * p > r for m, p, r in zip(input_map, layer.padding, window_sizes, strict=True))
    )
    (height, width), (top, left) = input_map, layer.padding
    module = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        layer.stride,
        0,
        layer.dilation,
        layer.groups,
        layer.bias,
    )
    assert layer.weight_shape == module.weight.shape
    assert layer.parameters == sum(p.numel() for p in module.parameters())
    for parameter, value in zip(module.parameters(), (1, 0), strict=False):
        nn.init.constant_(parameter, value)
    # Inputs and padding are ones and weights are ones, so the sum of all outputs counts the MACs.
    outputs = module(torch.ones(1, layer.in_channels, height + 2 * top, width + 2 * left))
    assert layer.output_map(input_map) == outputs.shape[2:]
    assert layer.macs(input_map) == outputs.sum()


@given(st.lists(plain_layers(), max_size=4))
def test_factored_json_round_trip(sequence):
    factored = Factored("tucker2", (3, 5), 0.25, tuple(sequence))
    assert Factored.from_json(json.loads(json.dumps(factored.to_json()))) == factored


def test_layer_table_json_round_trip():
    layers = (
        Layer(3, 8, (3, 5), (2, 1), (1, 2), (1, 1), 1, True, "a.b", "conv", (32, 30)),
        Layer(8, 8, (3, 3), groups=8, name="c", not_factored="depthwise"),
        Layer(8, 10, bias=True, name="d", kind="linear"),
    )
    table = LayerTable("net", (3, 32, 30), layers)
    assert LayerTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert table["c"] == layers[1]


def test_plan_json_round_trip():
    plan = Plan(
        (
            PlannedLayer("a", "tucker2", (3, 4), (2, 4), (100, 30), (1000, 300), None, ("a note",)),
            PlannedLayer("b", "svd", (), (9,), (50, 50), (50, 50), "costs more than the layer"),
        )
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [plan[name].is_dense for name in "ab"] == [False, True]


def test_a_plan_of_an_earlier_version_is_rejected(tmp_path):
    for document in ({"layers": [], "shares": {"conv": [3, 4]}}, {"ranks": {}}, [1]):
        write_json(tmp_path / "ranks.json", document)
        with pytest.raises(UserError, match=r"ranks\.json: not a plan, or a plan written by an"):
            Plan.read(tmp_path / "ranks.json")


def test_costs_of_a_sequence():
    # 16 -> 4 at 1x1 on 8x8; 4 -> 5 at 3x3, stride 2, to 4x4; 5 -> 32 at 1x1 on 4x4.
    sequence = [
        PlainLayer(16, 4),
        PlainLayer(4, 5, (3, 3), (2, 2), (1, 1)),
        PlainLayer(5, 32, bias=True),
    ]
    assert sequence_parameters(sequence) == 16 * 4 + 4 * 5 * 9 + 5 * 32 + 32
    assert sequence_macs(sequence, (8, 8)) == 64 * 64 + 16 * 180 + 16 * 160


def test_transposed_convolution_applies_its_kernel_at_each_input():
    layer = Layer(4, 6, (2, 2), (2, 2), kind="transposed_conv", input_map=(5, 7))
    outputs = functional.conv_transpose2d(torch.ones(1, 4, 5, 7), torch.ones(4, 6, 2, 2), stride=2)
    assert layer.dense_macs == outputs.sum()


LAYERS = [Layer(8, 8, (3, 3), name=name) for name in "abc"] + [
    Layer(8, 8, name=name, kind="linear") for name in "de"
]


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        ({"kind": "one_shot"}, ["abcde"]),
        ({"kind": "iterative"}, ["a", "b", "c", "d", "e"]),
        ({"kind": "iterative", "group": 2}, ["ab", "cd", "e"]),
        ({"kind": "iterative", "group": 9}, ["abcde"]),
        ({"kind": "iterative", "group": 2, "order": "reverse"}, ["ed", "cb", "a"]),
        ({"kind": "iterative", "group": 2, "order": ("d", "b")}, ["db", "ac", "e"]),
        ({"kind": "hybrid"}, ["a", "b", "c", "de"]),
        ({"kind": "hybrid", "group": 2, "order": ("e", "c")}, ["ca", "b", "ed"]),
        ({"kind": "multi_stage", "stages": 3}, ["abcde", "abcde", "abcde"]),
    ],
)
def test_rounds(schedule, rounds):
    assert rounds_of(LAYERS, **schedule) == [list(names) for names in rounds]


def test_hybrid_without_linear_layers_has_no_empty_round():
    assert rounds_of(LAYERS[:2], kind="hybrid") == [["a"], ["b"]]


TABLE = LayerTable(
    "net",
    (3, 8, 8),
    (
        Layer(3, 8, (3, 3), name="first"),
        Layer(8, 8, (3, 3), name="middle"),
        Layer(8, 8, (3, 3), groups=8, name="depthwise", not_factored="depthwise"),
        Layer(8, 8, (1, 1), name="pointwise"),
        Layer(8, 8, (1, 3), name="flat"),
        Layer(8, 10, (4, 4), name="behind_a_map", kind="linear", input_map=(4, 4)),
        Layer(8, 10, name="last", kind="linear"),
    ),
)
KINDS = {"first_conv": "A", "conv": "B", "pointwise_conv": "C", "linear": "D"}


def test_each_kind_of_layer_gets_its_factorization():
    assigned = assign_factorizations(TABLE, KINDS)
    assert list(assigned.items()) == [
        ("first", "A"),
        ("middle", "B"),
        ("pointwise", "C"),
        ("flat", "B"),
        ("behind_a_map", "D"),
        ("last", "D"),
    ]


def test_a_linear_layer_behind_a_map_has_its_own_kind():
    assigned = assign_factorizations(TABLE, KINDS | {"flattened_linear": "E"})
    assert (assigned["behind_a_map"], assigned["last"]) == ("E", "D")
    assigned = assign_factorizations(TABLE, {"flattened_linear": "E"})
    assert assigned == {"behind_a_map": "E"}


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        ({"include": ["f*"]}, ["first", "flat"]),
        ({"exclude": ["f*", "*t"]}, ["middle", "pointwise", "behind_a_map"]),
        ({"include": ["*t"], "exclude": ["f?r*"]}, ["flat", "last"]),
        ({"include": []}, []),
    ],
)
def test_layers_are_filtered_by_name(patterns, taken):
    assert list(assign_factorizations(TABLE, KINDS, **patterns)) == taken


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("first_conv", ["middle", "pointwise", "flat", "behind_a_map", "last"]),
        ("conv", ["first", "pointwise", "behind_a_map", "last"]),
        ("pointwise_conv", ["first", "middle", "flat", "behind_a_map", "last"]),
        ("linear", ["first", "middle", "pointwise", "flat"]),
    ],
)
def test_a_kind_without_factorization_stays_dense(kind, left):
    assert list(assign_factorizations(TABLE, KINDS | {kind: None})) == left


@pytest.mark.parametrize(
    "document", [{}, [], None, {"network": "a", "input_shape": 3, "layers": []}]
)
def test_damaged_layer_tables_are_rejected(document):
    with pytest.raises(UserError, match=r"a layer table .* is damaged, or was written by an"):
        LayerTable.from_json(document)


def test_a_depthwise_layer_that_nothing_feeds_feeds_nothing():
    depthwise = Layer(8, 8, groups=8, name="d", not_factored="depthwise")
    last = Layer(8, 4, name="last")
    table = LayerTable("network", (8, 4, 4), with_feeders([depthwise, last], {"last": "d"}))
    assert [layer.fed_by for layer in table.layers] == [None, None]
    first = Layer(3, 8, name="first")
    feeders = {"d": "first", "last": "d"}
    fed = LayerTable("network", (3, 4, 4), with_feeders([first, depthwise, last], feeders))
    assert [layer.name for layer in fed.feeders(fed["last"])] == ["d", "first"]


@pytest.mark.parametrize(
    ("fields", "feeder"),
    [
        ({"groups": 2}, {}),
        ({}, {"groups": 2}),
        ({"kind": "linear"}, {}),
        ({"not_factored": "a reason"}, {}),
        ({}, {"not_factored": "a reason"}),
        ({"in_channels": 32}, {}),
    ],
)
def test_layers_that_cannot_change_have_no_feeder(fields, feeder):
    layers = [
        Layer(**({"in_channels": 4, "out_channels": 8, "name": "first"} | feeder)),
        Layer(**({"in_channels": 8, "out_channels": 4, "name": "last"} | fields)),
    ]
    assert with_feeders(layers, {"last": "first"})[1].fed_by is None
