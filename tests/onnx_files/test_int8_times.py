"""Test which nodes are slower in int8, for given latencies."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from lowrank.devices.device import NodeTime
from lowrank.onnx_files.int8_times import NodeCost, decision, measured_costs, slower_in_int8


def cost(name, in_float, in_int8, after=(), *, conversions=0.0, edge=2.0):
    return NodeCost(name, in_float, in_int8, conversions, edge, edge, tuple(after))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # Faster in int8.
        ([cost("a", 20, 10), cost("b", 20, 10, "a")], ()),
        # Slower in int8, but faster than float with two conversions: 10 + 4 > 13.
        ([cost("a", 20, 9), cost("b", 10, 13, "a"), cost("c", 20, 9, "b")], ()),
        # Slower than float with two conversions: 10 + 4 < 17.
        ([cost("a", 20, 9), cost("b", 10, 17, "a"), cost("c", 20, 9, "b")], ("b",)),
        # Slower, but within the margin: 14 and 15.
        ([cost("a", 20, 9), cost("b", 10, 15, "a"), cost("c", 20, 9, "b")], ()),
        # Two nodes together need no conversion between them: 20 + 4 < 28; alone, 14 = 14.
        (
            [
                *(cost("a", 20, 9), cost("b", 10, 14, "a")),
                *(cost("c", 10, 14, "b"), cost("d", 20, 9, "c")),
            ],
            ("b", "c"),
        ),
        # The input and output of the network are in float: one conversion or none.
        ([cost("a", 10, 14), cost("b", 20, 9, "a")], ("a",)),
        ([cost("a", 20, 9), cost("b", 10, 14, "a")], ("b",)),
        ([cost("a", 10, 12), cost("b", 10, 12, "a")], ("a", "b")),
        # Conversions caused by int8 count for int8.
        ([cost("a", 10, 9, conversions=5), cost("b", 20, 9, "a")], ("a",)),
        # Separate islands are decided separately.
        (
            [
                *(cost("a", 10, 18), cost("b", 20, 9, "a"), cost("c", 10, 13, "b")),
                *(cost("d", 20, 9, "c"), cost("e", 10, 18, "d")),
            ],
            ("a", "e"),
        ),
        # A node after two islands joins them into one: 30 + 2 < 42.
        ([cost("a", 10, 14), cost("b", 10, 14), cost("c", 10, 14, "ab"), cost("d", 9, 3, "c")],
         ("a", "b", "c")),
        ([], ()),
    ],
)  # fmt: skip
def test_islands_that_are_slower_in_int8(nodes, expected):
    assert slower_in_int8(nodes, 0.1) == expected


@pytest.mark.parametrize(
    ("lower_end", "expected"), [(1.01, ("a",)), (1.0, ()), (0.97, ()), (None, ())]
)
def test_complete_file_must_be_faster(lower_end, expected):
    nodes = [cost("a", 10, 20), cost("b", 20, 10, "a")]
    record = {
        "margin": 0.1,
        "nodes": [dataclasses.asdict(node) for node in nodes],
        "whole": None if lower_end is None else {"speedup_low": lower_end},
    }
    assert decision(json.loads(json.dumps(record))) == expected


def test_without_measurement_no_node_stays_in_float():
    assert decision({"device": "board", "not_measured": "it is off"}) == ()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Write a model of two convolutions with an activation and a pooling between them."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["images", "w1"], ["c1"], "first"),
            node("Relu", ["c1"], ["r1"], "node_relu"),
            node("MaxPool", ["r1"], ["p1"], "node_pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["p1", "w2"], ["out"], "second"),
        ],
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [
            helper.make_tensor("w1", TensorProto.FLOAT, [4, 1, 1, 1], [1.0] * 4),
            helper.make_tensor("w2", TensorProto.FLOAT, [1, 4, 1, 1], [1.0] * 4),
        ],
        value_info=[
            helper.make_tensor_value_info("c1", TensorProto.FLOAT, ["batch", 4, 4, 4]),
            helper.make_tensor_value_info("p1", TensorProto.FLOAT, ["batch", 4, 2, 2]),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def profile(**nodes):
    return {name: NodeTime(operator, us / 1e3) for name, (operator, us) in nodes.items()}


def test_fused_kernels_and_conversions_are_assigned_to_nodes(chain):
    """A float kernel has the name of its output, an integer kernel the name of its node."""
    in_float = profile(r1=("Conv", 10), node_pool=("MaxPool", 1), second=("Conv", 20))
    first, second = measured_costs(
        chain,
        in_float,
        profile(
            images_QuantizeLinear=("QuantizeLinear", 3.2),
            first=("QLinearConv", 5),
            node_pool=("MaxPool", 1),
            second=("QLinearConv", 6),
            out_DequantizeLinear=("DequantizeLinear", 0.8),
        ),
    )
    # 16 elements take 3.2 µs, so 64 take 12.8 µs and 4 take 0.8 µs.
    expected = NodeCost("first", 10, 5, 3.2, 3.2, 12.8, ())
    assert dataclasses.astuple(first)[1:6] == pytest.approx(dataclasses.astuple(expected)[1:6])
    expected = NodeCost("second", 20, 6, 0.8, 3.2, 0.8, ("first",))
    assert dataclasses.astuple(second)[1:6] == pytest.approx(dataclasses.astuple(expected)[1:6])
    assert (first.after, second.after) == ((), ("first",))


def test_conversions_count_for_the_node_in_float(chain):
    """The second convolution of the file has no integer kernel."""
    in_float = profile(first=("Conv", 10), second=("Conv", 20))
    first, second = measured_costs(
        chain,
        in_float,
        profile(
            first=("QLinearConv", 5),
            p1_DequantizeLinear=("DequantizeLinear", 2),
            second=("Conv", 20),
            out_QuantizeLinear=("QuantizeLinear", 1),
        ),
    )
    assert (first.conversions_us, second.conversions_us) == (0, pytest.approx(3))
    assert second.int8_us == pytest.approx(20)
