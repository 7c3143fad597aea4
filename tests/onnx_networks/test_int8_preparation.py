"""Preparation of a user's graph for int8."""

import onnx
from onnx import helper
from onnx_graphs import network, random

from lowrank.onnx_networks.int8_preparation import write_prepared


def test_nodes_without_a_name_get_one_that_is_free(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="Conv_1"),
        helper.make_node("Conv", ["a", "v"], ["y"]),
    ]
    weights = {"w": random(4, 3, 1, 1), "v": random(2, 4, 1, 1, seed=1)}
    model = network(nodes, weights, inputs={"x": ("n", 3, 8, 8)}, opset=14)
    prepared = onnx.load(write_prepared(model, tmp_path / "prepared.onnx", "net"))
    names = [node.name for node in prepared.graph.node]
    assert names[0] == "Conv_1"
    assert len(set(names)) == 2
    assert all(names)
