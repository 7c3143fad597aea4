"""Which nodes are slower in int8, by times that are given."""

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
        # Slower, but not by what the two conversions take: 10 + 4 of 13.
        ([cost("a", 20, 9), cost("b", 10, 13, "a"), cost("c", 20, 9, "b")], ()),
        # By more: 10 + 4 of 17.
        ([cost("a", 20, 9), cost("b", 10, 17, "a"), cost("c", 20, 9, "b")], ("b",)),
        # By more, but within the margin: 14 of 15.
        ([cost("a", 20, 9), cost("b", 10, 15, "a"), cost("c", 20, 9, "b")], ()),
        # What two of them together do not convert between them: 20 + 4 of 28, alone 14 of 14.
        (
            [
                *(cost("a", 20, 9), cost("b", 10, 14, "a")),
                *(cost("c", 10, 14, "b"), cost("d", 20, 9, "c")),
            ],
            ("b", "c"),
        ),
        # The network's input and output are in float already: one conversion, or none.
        ([cost("a", 10, 14), cost("b", 20, 9, "a")], ("a",)),
        ([cost("a", 20, 9), cost("b", 10, 14, "a")], ("b",)),
        ([cost("a", 10, 12), cost("b", 10, 12, "a")], ("a", "b")),
        # Conversions that int8 causes count as int8.
        ([cost("a", 10, 9, conversions=5), cost("b", 20, 9, "a")], ("a",)),
        # Islands apart are judged apart.
        (
            [
                *(cost("a", 10, 18), cost("b", 20, 9, "a"), cost("c", 10, 13, "b")),
                *(cost("d", 20, 9, "c"), cost("e", 10, 18, "d")),
            ],
            ("a", "e"),
        ),
        # A branch that joins two islands makes one of them: 30 + 2 of 42.
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
def test_the_whole_file_decides(lower_end, expected):
    nodes = [cost("a", 10, 20), cost("b", 20, 10, "a")]
    record = {
        "margin": 0.1,
        "nodes": [dataclasses.asdict(each) for each in nodes],
        "whole": None if lower_end is None else {"speedup_low": lower_end},
    }
    assert decision(json.loads(json.dumps(record))) == expected


def test_nothing_measured_keeps_nothing_in_float():
    assert decision({"device": "board", "not_measured": "it is off"}) == ()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two convolutions with an activation and a pooling between them."""
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


def test_fused_kernels_and_conversions_belong_to_nodes(chain):
    """A float kernel bears the name of what it leaves, an integer one that of its node."""
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
    # 16 elements take 3.2: 64 take 12.8, and 4 take 0.8.
    expected = NodeCost("first", 10, 5, 3.2, 3.2, 12.8, ())
    assert dataclasses.astuple(first)[1:6] == pytest.approx(dataclasses.astuple(expected)[1:6])
    expected = NodeCost("second", 20, 6, 0.8, 3.2, 0.8, ("first",))
    assert dataclasses.astuple(second)[1:6] == pytest.approx(dataclasses.astuple(expected)[1:6])
    assert (first.after, second.after) == ((), ("first",))


def test_conversions_are_caused_by_what_fell_back_to_float(chain):
    """A profile of a file whose second convolution has no integer kernel."""
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
