"""Factors replace layers in a graph without touching anything else."""

import copy

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import CONVOLUTIONS, MATRICES, convolution, matrix, network, random

from lowrank.factorize import FACTORIZATIONS, decompose, get_factorization, one_group
from lowrank.onnx_networks.constants import Constants
from lowrank.onnx_networks.graph_factors import put_factors
from lowrank.onnx_networks.graph_layers import find_sites, weight_and_bias
from lowrank.onnx_networks.model_file import input_shapes
from lowrank.onnx_networks.model_run import ModelRun

# Without those that compute terms one after another, which is slow at full rank.
METHODS = {
    name: method for name, method in FACTORIZATIONS.usable().items() if method.is_closed_form
}


def sites_of(model):
    return find_sites(model, input_shapes("network", model), "network")


def replaced(model, name):
    """Return a copy with its only layer at full rank, its site and the factors."""
    (site,) = sites_of(model)
    method = get_factorization(name)
    weight, bias = weight_and_bias(site, Constants(model.graph))
    ranks = method.full_ranks(one_group(site.layer))
    factors = decompose(method, site.layer, weight, bias, ranks)
    changed = copy.deepcopy(model)
    put_factors(changed, site, factors.sequence, factors.tensors)
    return changed, site, factors


def difference(model, changed):
    shapes = {name: (3, *shape[1:]) for name, shape in input_shapes("network", model).items()}
    feed = {name: random(*shape, seed=2) for name, shape in shapes.items()}
    before, after = ModelRun(model, "network")(feed), ModelRun(changed, "network")(feed)
    assert before.keys() == after.keys()
    return max(
        float(np.abs(after[name] - array).max() / np.abs(array).max())
        for name, array in before.items()
    )


def cases(models):
    """Yield the form of each network, and each factorization that applies to its layer."""
    for form, model in models.items():
        (site,) = sites_of(model)
        for name, method in METHODS.items():
            if not method.applies_to(site.layer):
                yield pytest.param(form, name, id=f"{form}-{name}")


CONVOLUTION_MODELS = {
    form: convolution(weight, **attributes) for form, (weight, attributes) in CONVOLUTIONS.items()
}
MATRIX_MODELS = {form: matrix(form) for form in MATRICES}


@pytest.mark.parametrize(("form", "name"), list(cases(CONVOLUTION_MODELS)))
def test_a_convolution_at_full_rank_is_equal(form, name):
    model = CONVOLUTION_MODELS[form]
    changed, site, factors = replaced(model, name)
    onnx.checker.check_model(changed, full_check=True)
    assert difference(model, changed) < 1e-5
    assert len(changed.graph.node) == 2 + len(factors.sequence)
    assert site.layer.name == "block.0"


@pytest.mark.parametrize(("form", "name"), list(cases(MATRIX_MODELS)))
def test_a_product_at_full_rank_is_equal(form, name):
    model = MATRIX_MODELS[form]
    changed, site, factors = replaced(model, name)
    onnx.checker.check_model(changed, full_check=True)
    assert difference(model, changed) < 1e-5
    assert site.layer.name == "fc"
    if form not in ("flattened map", "reshaped map"):
        operators = [node.op_type for node in changed.graph.node]
        assert operators.count(model.graph.node[0].op_type) == len(factors.sequence)


def test_everything_else_stays_as_it_was():
    weight, attributes = CONVOLUTIONS["plain"]
    model = convolution(weight, **attributes)
    changed, _, _ = replaced(model, "tucker2")
    for part in ("input", "output", "value_info", "name", "doc_string"):
        assert getattr(changed.graph, part) == getattr(model.graph, part)
    for part in ("ir_version", "producer_name", "opset_import", "metadata_props"):
        assert getattr(changed, part) == getattr(model, part)
    assert [changed.graph.node[0], changed.graph.node[-1]] == [
        model.graph.node[0],
        model.graph.node[-1],
    ]
    names = {tensor.name for tensor in changed.graph.initializer}
    assert names == {f"block.0.{i}.weight" for i in range(3)} | {"block.0.2.bias"}


def test_names_that_are_taken_are_not_used_again():
    make = helper.make_node
    tensors = {"w": random(8, 6, 3, 3), "block.0.0.weight": random(1, 8, 1, 1, seed=3)}
    nodes = [
        make("Conv", ["x", "w"], ["c"], "/block/0/Conv"),
        # The name of a stored tensor and that of a node are those of the first factor.
        make("Mul", ["c", "block.0.0.weight"], ["y"], "block.0.0"),
    ]
    model = network(nodes, tensors)
    changed, _, _ = replaced(model, "tucker2")
    names = [node.name for node in changed.graph.node]
    assert len(names) == len(set(names))
    onnx.checker.check_model(changed, full_check=True)
    assert difference(model, changed) < 1e-5


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_in_inputs_and_in_nodes(ir_version):
    """Old files list weights as inputs; Paddle and TensorFlow store them in Constant nodes."""
    weight, make = random(8, 6, 3, 3), helper.make_node
    if ir_version == 3:
        nodes = [make("Conv", ["x", "w"], ["y"], "conv")]
        model = network(nodes, {"w": weight}, opset=9, ir_version=3)
    else:
        value = onnx.numpy_helper.from_array(weight)
        nodes = [
            make("Constant", [], ["v"], "value", value=value),
            make("Identity", ["v"], ["w"], "copy"),
            make("Conv", ["x", "w"], ["y"], "conv"),
        ]
        model = network(nodes, {})
    changed, _, _ = replaced(model, "tucker2")
    onnx.checker.check_model(changed, full_check=True)
    assert difference(model, changed) < 1e-5
    assert not {"v", "w"} & {name for node in changed.graph.node for name in node.output}
    assert "w" not in {entry.name for entry in changed.graph.input}


def test_weights_in_half_precision_stay_in_half_precision():
    make = helper.make_node
    tensors = {"w": random(8, 6, 3, 3, dtype=np.float16)}
    nodes = [
        make("Cast", ["x"], ["h"], "half", to=onnx.TensorProto.FLOAT16),
        make("Conv", ["h", "w"], ["c"], "conv"),
        make("Cast", ["c"], ["y"], "float", to=onnx.TensorProto.FLOAT),
    ]
    model = network(nodes, tensors)
    changed, _, _ = replaced(model, "tucker2")
    onnx.checker.check_model(changed, full_check=True)
    assert {tensor.data_type for tensor in changed.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert difference(model, changed) < 0.02
