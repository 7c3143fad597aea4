"""Removal of branches that compute a constant."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_graphs import network, random

from lowrank.onnx_networks.branch_removal import added_outputs, remove_constant_branches

ZEROS = np.zeros((4, 4, 3, 3), np.float32)


def residual(*, kernel, outputs=("y",), second=None) -> onnx.ModelProto:
    """Return x + branch(x), or the sum of two branches."""
    make = helper.make_node
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "first", **pads),
        make("Relu", ["c1"], ["r1"], "relu"),
        make("Conv", ["r1", "w2", "b2"], ["c2"], "second", **pads),
    ]
    stored = {"w1": random(4, 4, 3, 3), "b1": random(4), "w2": kernel, "b2": random(4, seed=1)}
    other = "x"
    if second is not None:
        nodes.append(make("Conv", ["x", "w3", "b3"], ["c3"], "third", **pads))
        stored |= {"w3": second, "b3": random(4, seed=2)}
        other = "c3"
    nodes.append(make("Add", ["c2", other], ["y"], "sum"))
    return network(nodes, stored, inputs={"x": ("batch", 4, 6, 6)}, outputs=outputs)


def outputs_of(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (outputs,) = session.run(None, {"x": random(2, 4, 6, 6, seed=3)})
    return outputs


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_branch_without_effect_is_removed():
    model, original = residual(kernel=ZEROS), residual(kernel=ZEROS)
    remove_constant_branches(model)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == ["Add"]
    assert {tensor.name for tensor in model.graph.initializer} == {"c2_constant"}
    np.testing.assert_allclose(outputs_of(model), outputs_of(original), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"kernel": random(4, 4, 3, 3)}, {"kernel": ZEROS, "outputs": ("y", "c2")}],
)
def test_other_branches_stay(options):
    model = residual(**options)
    remove_constant_branches(model)
    assert operators(model) == ["Conv", "Relu", "Conv", "Add"]


def test_of_two_constants_one_stays():
    """A sum of two constants has the shape of one pixel."""
    model, original = (residual(kernel=ZEROS, second=ZEROS) for _ in range(2))
    remove_constant_branches(model)
    assert operators(model) == ["Conv", "Add"]
    np.testing.assert_allclose(outputs_of(model), outputs_of(original), atol=1e-6)


def test_the_first_term_that_nothing_else_reads_can_become_a_constant():
    assert added_outputs(residual(kernel=ZEROS).graph) == {"c2"}
    assert added_outputs(residual(kernel=ZEROS, second=ZEROS).graph) == {"c2"}
    assert added_outputs(residual(kernel=ZEROS, outputs=("y", "c2")).graph) == set()


def test_a_term_that_is_broadcast_cannot_stay_alone():
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        make("GlobalAveragePool", ["x"], ["p"], "pool"),
        make("Add", ["c", "p"], ["y"], "sum"),
    ]
    stored = {"w": ZEROS, "b": random(4)}
    model = network(nodes, stored, inputs={"x": ("batch", 4, 6, 6)})
    remove_constant_branches(model)
    assert operators(model) == ["Conv", "GlobalAveragePool", "Add"]
