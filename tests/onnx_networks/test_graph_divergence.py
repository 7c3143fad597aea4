"""The divergence from parts of the network is that of the whole network."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import network, random

from lowrank.core.output_change import OutputSums, ReferenceOutputs
from lowrank.factorize import decompose, get_factorization, one_group
from lowrank.onnx_networks import graph_divergence
from lowrank.onnx_networks.constants import Constants
from lowrank.onnx_networks.graph_divergence import GraphDivergence
from lowrank.onnx_networks.graph_factors import put_factors
from lowrank.onnx_networks.graph_layers import find_sites, weight_and_bias
from lowrank.onnx_networks.graph_parts import GraphParts
from lowrank.onnx_networks.model_run import ModelRun

make = helper.make_node


def branching() -> onnx.ModelProto:
    """Return a network with a skip connection, a constant branch, and outputs at several places.

    One output does not depend on the last layers, another one is itself the output of a layer.
    """
    return network(
        [
            make("Conv", ["x", "w0", "b0"], ["c0"], "first", pads=[1, 1, 1, 1]),
            make("Relu", ["c0"], ["r0"]),
            make("Sqrt", ["s"], ["scale"], "constant branch"),
            make("Conv", ["r0", "w1"], ["c1"], "second", pads=[1, 1, 1, 1]),
            make("Mul", ["c1", "scale"], ["m"]),
            make("Add", ["m", "r0"], ["skip"]),
            make("GlobalAveragePool", ["r0"], ["early"], "early"),
            make("Shape", ["skip"], ["all sizes"]),
            make("Slice", ["all sizes", "zero", "one"], ["batch"]),
            make("Concat", ["batch", "rest"], ["sizes"], axis=0),
            make("Reshape", ["skip", "sizes"], ["flat"]),
            make("Gemm", ["flat", "w2", "b2"], ["g"], "on the map", transB=1),
            make("Relu", ["g"], ["rg"]),
            make("MatMul", ["rg", "w3"], ["p"], "with bias"),
            make("Add", ["p", "b3"], ["logits"]),
            make("Softmax", ["logits"], ["y"], "softmax", axis=1),
            make("MatMul", ["rg", "w4"], ["box"], "last"),
        ],
        {
            "w0": random(12, 6, 3, 3, seed=1),
            "b0": random(12, seed=2),
            "s": np.array(0.01, np.float32),
            "w1": random(12, 12, 3, 3, seed=3),
            "w2": random(16, 12 * 72, seed=4) / 30,
            "b2": random(16, seed=5),
            "w3": random(16, 10, seed=6),
            "b3": random(10, seed=7),
            "w4": random(16, 8, seed=8),
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([12 * 72]),
        },
        outputs=("y", "early", "box"),
    )


def with_a_branch() -> onnx.ModelProto:
    """Return a network whose condition reads tensors of the whole network in its branches."""
    branches = []
    for operator, tensor in (("Relu", "c0"), ("Tanh", "x1")):
        branches.append(
            helper.make_graph(
                [make(operator, [tensor], [f"{operator} result"])],
                operator,
                [],
                [helper.make_tensor_value_info(f"{operator} result", TensorProto.FLOAT, None)],
            )
        )
    nodes = [
        make("Conv", ["x", "w0"], ["c0"], "first"),
        make("Conv", ["x", "w1"], ["x1"], "second"),
        make("If", ["yes"], ["h"], then_branch=branches[0], else_branch=branches[1]),
        make("Conv", ["h", "w2"], ["y"], "third"),
    ]
    tensors = {"w0": random(12, 6, 3, 3), "w1": random(12, 6, 3, 3, seed=1)}
    tensors |= {"w2": random(8, 12, 1, 1, seed=2), "yes": np.array(True)}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 6, 9, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_a_sequence() -> onnx.ModelProto:
    """Return a network in which a layer's result meets a sequence of tensors."""
    return network(
        [
            make("Conv", ["x", "w0"], ["c0"], "first"),
            make("SequenceConstruct", ["x", "x"], ["several"]),
            make("SequenceInsert", ["several", "c0"], ["more"]),
            make("SequenceAt", ["more", "two"], ["h"]),
            make("Conv", ["h", "w1"], ["y"], "second"),
        ],
        {
            "w0": random(12, 6, 3, 3),
            "w1": random(8, 12, 1, 1, seed=1),
            "two": np.array(2),
        },
    )


def candidates(model, shapes):
    """Return each layer at two ranks, and the layers by name."""
    sites = find_sites(model, shapes, "model")
    result = []
    for site in sites:
        layer = site.layer
        method = get_factorization("svd" if layer.kernel == (1, 1) else "tucker2")
        full = method.full_ranks(one_group(layer))
        kernel, bias = weight_and_bias(site, Constants(model.graph))
        for share in (2, 3):
            ranks = tuple(max(rank // share, 1) for rank in full)
            result.append((layer.name, decompose(method, layer, kernel, bias, ranks, None)))
    return result, {site.layer.name: site for site in sites}


def of_whole_network(model, site, factors, samples):
    """Return the divergence of the whole network with one layer replaced."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    put_factors(changed, site, factors.sequence, factors.tensors)
    before, after, sums = ModelRun(model, "model"), ModelRun(changed, "changed"), OutputSums()
    for piece in samples:
        sums.add(after(piece), ReferenceOutputs(before(piece)))
    return sums.divergence()


SHAPES = {"x": (1, 6, 9, 8)}
SAMPLES = [{"x": random(size, 6, 9, 8, seed=size)} for size in (4, 4, 3)]


@pytest.mark.parametrize("make_model", [branching, with_a_branch, with_a_sequence])
# Memory for everything, for one layer at a time, and for less than all samples.
@pytest.mark.parametrize("recorded_bytes", [1e9, 60e3, 1e3])
def test_parts_of_a_network_give_the_divergence_of_the_whole(
    make_model, recorded_bytes, monkeypatch
):
    monkeypatch.setattr(graph_divergence, "_RECORDED_BYTES", recorded_bytes)
    model = make_model()
    before = model.SerializeToString()
    replacements, sites = candidates(model, SHAPES)
    divergence = GraphDivergence(model, sites, SAMPLES, SHAPES, "model")
    measured = list(divergence(iter(replacements)))
    expected = [of_whole_network(model, sites[n], factors, SAMPLES) for n, factors in replacements]
    assert measured == pytest.approx(expected, rel=1e-4)
    assert sum(loss > 1e-5 for loss in expected) >= 4
    assert model.SerializeToString() == before


def test_replacements_in_any_order_and_none():
    model = branching()
    replacements, sites = candidates(model, SHAPES)
    divergence = GraphDivergence(model, sites, SAMPLES, SHAPES, "model")
    in_order = list(divergence(replacements))
    assert list(divergence(replacements[::-1])) == pytest.approx(in_order[::-1], rel=1e-5)
    assert list(divergence([])) == []


def test_only_nodes_behind_a_layer_run():
    model = branching()
    _, sites = candidates(model, SHAPES)
    parts = GraphParts(model)
    assert parts.reads_at(sites["with_bias"]) == ("rg",)
    assert parts.reads_at(sites["second"]) == ("r0",)
    # Also the map before it is flattened.
    assert set(parts.reads_at(sites["on_the_map"])) == {"flat", "skip"}


def test_recorded_tensors_stay_within_the_memory(monkeypatch):
    """No more pieces of the samples are recorded at once than fit."""
    limit = 150e3
    monkeypatch.setattr(graph_divergence, "_RECORDED_BYTES", limit)
    recorded = []
    original = GraphDivergence._add

    def watched(self, site, changed, values, references):
        kept = [array.nbytes for piece in values for name, array in piece.items() if name != "x"]
        recorded.append(sum(kept))
        original(self, site, changed, values, references)

    monkeypatch.setattr(GraphDivergence, "_add", watched)
    model = branching()
    samples = [{"x": random(2, 6, 9, 8, seed=n)} for n in range(20)]
    replacements, sites = candidates(model, SHAPES)
    list(GraphDivergence(model, sites, samples, SHAPES, "model")(replacements))
    assert 0.2 * limit < max(recorded) <= limit
