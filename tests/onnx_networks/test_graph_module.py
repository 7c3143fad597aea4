"""An ONNX network as a PyTorch module, in both engines, and its way back into the graph."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_graphs import (
    CONVOLUTIONS,
    MATRICES,
    convolution,
    matrix,
    network,
    random,
    reader_of_words,
    words_and_features,
)

from lowrank.factorize import decompose, get_factorization
from lowrank.onnx_networks import graph_module
from lowrank.onnx_networks.graph_export import model_of
from lowrank.onnx_networks.graph_layers import find_sites
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.onnx_networks.model_file import input_shapes
from lowrank.onnx_networks.model_run import ModelRun
from lowrank.surgery.states import put_factors

MODELS = {
    **{f"convolution {name}": convolution(w, **a) for name, (w, a) in CONVOLUTIONS.items()},
    **{f"matrix {name}": matrix(name) for name in MATRICES},
}


def module_of(model: onnx.ModelProto, given=None) -> GraphModule:
    shapes = input_shapes("model.onnx", model, given)
    return GraphModule(model, find_sites(model, shapes, "model.onnx"), shapes, "nchw", "model.onnx")


@pytest.fixture(params=["PyTorch", "ONNX Runtime"])
def engine(request, monkeypatch):
    if request.param == "ONNX Runtime":
        monkeypatch.setattr(graph_module, "converted", lambda *_: ([], ["Something"]))
    return request.param


def inputs_for(model: onnx.ModelProto, count: int = 3) -> torch.Tensor:
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return torch.from_numpy(random(count, *sizes[1:], seed=5))


def outputs_in_runtime(model: onnx.ModelProto, inputs: torch.Tensor) -> np.ndarray:
    (output,) = ModelRun(model, "model.onnx")({model.graph.input[0].name: inputs.numpy()}).values()
    return output


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_file_computes(name, engine):
    model = MODELS[name]
    built, inputs = module_of(model), inputs_for(model)
    assert bool(built.obstacle) == (engine == "ONNX Runtime")
    with torch.no_grad():
        outputs = built(inputs).numpy()
    np.testing.assert_allclose(outputs, outputs_in_runtime(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_unchanged_networks_are_written_as_the_same_bytes(name):
    model = MODELS[name]
    assert model_of(module_of(model)).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("name", MODELS)
def test_trained_weights_are_written_into_the_graph(name):
    model = MODELS[name]
    built, inputs = module_of(model), inputs_for(model)
    with torch.no_grad():
        for number, parameter in enumerate(built.parameters()):
            parameter.add_(torch.from_numpy(random(*parameter.shape, seed=number)))
        expected = built(inputs).numpy()
    written = model_of(built)
    onnx.checker.check_model(written)
    assert len(written.graph.node) == len(model.graph.node)
    np.testing.assert_allclose(outputs_in_runtime(written, inputs), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["convolution plain", "matrix flattened map", "matrix tokens"])
def test_trained_factors_are_written_into_the_graph(name):
    model = MODELS[name]
    built, inputs = module_of(model), inputs_for(model)
    (site,) = built.origin.sites
    factorization = get_factorization("svd" if "tokens" in name else "tucker2")
    layer = built.get_submodule(site.layer.name)
    weight, bias = (tensor.detach().numpy() for tensor in (layer.weight, layer.bias))
    ranks = (2,) if "tokens" in name else (3, 4)
    factors = decompose(factorization, site.layer, weight, bias, ranks)
    put_factors(built, site.layer.name, factors.sequence, factors.tensors, source="here")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.1)
        expected = built(inputs).numpy()
    written = model_of(built)
    onnx.checker.check_model(written)
    np.testing.assert_allclose(outputs_in_runtime(written, inputs), expected, rtol=1e-3, atol=1e-4)


def test_layers_are_trained_and_stored_tensors_are_not():
    model = convolution(random(8, 6, 3, 3), pads=[1, 1, 1, 1])
    built = module_of(model)
    built(inputs_for(model)).square().mean().backward()
    assert [name for name, _ in built.named_parameters()] == ["block.0.weight", "block.0.bias"]
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert list(built.state_dict()) == ["block.0.weight", "block.0.bias"]


def test_copies_are_independent(engine):
    model = convolution(random(8, 6, 3, 3), pads=[1, 1, 1, 1])
    built, inputs = module_of(model), inputs_for(model)
    copied = copy.deepcopy(built)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(copied(inputs), torch.zeros_like(built(inputs)))
        assert built(inputs).any()


def test_operators_that_cannot_be_converted_are_named():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Shrink", ["c"], ["y"], "act", lambd=0.5),
    ]
    model = network(nodes, {"w": random(8, 6, 3, 3)})
    built, inputs = module_of(model), inputs_for(model)
    assert built.obstacle == "operators that cannot be converted: Shrink"
    with torch.no_grad():
        outputs = built(inputs).numpy()
    np.testing.assert_allclose(outputs, outputs_in_runtime(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_wrong_conversion_is_detected(monkeypatch):
    model = convolution(random(8, 6, 3, 3), pads=[1, 1, 1, 1])
    right = graph_module.converted

    def wrong(*arguments):
        steps, missing = right(*arguments)
        return [step for step in steps if isinstance(step, str)] + steps[:1], missing

    monkeypatch.setattr(graph_module, "converted", wrong)
    built = module_of(model)
    assert built.obstacle.startswith("an operation fails in PyTorch")
    with torch.no_grad():
        outputs = built(inputs_for(model)).numpy()
    np.testing.assert_allclose(
        outputs, outputs_in_runtime(model, inputs_for(model)), rtol=1e-4, atol=1e-5
    )


def test_constants_are_computed_once():
    """Weights in Constant nodes, and a shape that is computed from stored tensors."""
    nodes = [
        helper.make_node(
            "Constant", [], ["w"], value=onnx.numpy_helper.from_array(random(5, 6, 1, 1))
        ),
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Concat", ["minus", "size"], ["shape"], axis=0),
        helper.make_node("Reshape", ["c", "shape"], ["y"], allowzero=1),
    ]
    tensors = {"minus": np.array([-1]), "size": np.array([5 * 9 * 8])}
    model = network(nodes, tensors)
    built, inputs = module_of(model), inputs_for(model)
    assert not built.obstacle
    with torch.no_grad():
        outputs = built(inputs).numpy()
    np.testing.assert_allclose(outputs, outputs_in_runtime(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_runs_on_any_number_of_images(engine):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    tensors = {"w": random(4, 6, 3, 3), "shape": np.array([2, 4 * 9 * 8])}
    model = network(nodes, tensors, inputs={"x": (2, 6, 9, 8)})
    built, inputs = module_of(model), inputs_for(model, count=5)
    with torch.no_grad():
        outputs = built(inputs)
    assert outputs.shape == (5, 4 * 9 * 8)
    expected = outputs_in_runtime(model, inputs[2:4])
    np.testing.assert_allclose(outputs[2:4], expected, rtol=1e-4, atol=1e-5)


def test_several_outputs_have_their_names():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["maps"], "conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["vectors"]),
    ]
    model = network(nodes, {"w": random(4, 6, 3, 3)}, outputs=("vectors", "maps"))
    outputs = module_of(model)(inputs_for(model))
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        "vectors": (3, 4, 1, 1),
        "maps": (3, 4, 7, 6),
    }


@pytest.mark.parametrize("batch", ["batch", 2])
def test_several_inputs_are_given_by_name(engine, batch):
    model, feed = reader_of_words(batch), words_and_features(5)
    built = module_of(model)
    assert bool(built.obstacle) == (engine == "ONNX Runtime")
    with torch.no_grad():
        outputs = built({name: torch.from_numpy(array) for name, array in feed.items()})
    (expected,) = ModelRun(reader_of_words(), "model.onnx")(feed).values()
    assert outputs.shape == (5, 4)
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_names_of_layers_can_be_places_of_modules():
    """Names that are attributes of all modules, or that contain each other, are changed."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "train"),
        helper.make_node("Conv", ["a", "w2"], ["b"], "a/b"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "a"),
        helper.make_node("Conv", ["c", "w3"], ["y"], "a/"),
    ]
    tensors = {"w1": random(6, 6, 1, 1), "w2": random(6, 6, 1, 1), "w3": random(6, 6, 1, 1)}
    built = module_of(network(nodes, tensors))
    assert [site.layer.name for site in built.origin.sites] == ["train_", "a.b", "a_2", "a_3"]


def test_a_shared_bias_is_only_changed_for_its_layer():
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b"], ["a"], "first"),
        helper.make_node("Conv", ["x", "w2", "b"], ["c"], "second"),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    tensors = {"w1": random(4, 6, 1, 1), "w2": random(4, 6, 1, 1, seed=1), "b": random(4, seed=2)}
    model = network(nodes, tensors)
    built, inputs = module_of(model), inputs_for(model)
    with torch.no_grad():
        built.first.bias.add_(1.0)
        expected = built(inputs).numpy()
    written = model_of(built)
    np.testing.assert_allclose(outputs_in_runtime(written, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("node", "tensors", "opset"),
    [
        (
            helper.make_node("ReduceMean", ["c", "axes"], ["y"], "mean", keepdims=0),
            {"axes": np.array([2, 3])},
            18,
        ),
        (
            helper.make_node("ReduceMax", ["c", "axes"], ["y"], "max", noop_with_empty_axes=0),
            {"axes": np.array([1])},
            20,
        ),
        (
            helper.make_node("Reshape", ["c", "shape"], ["y"], "flat", allowzero=1),
            {"shape": np.array([-1, 8 * 9 * 8])},
            21,
        ),
        (
            helper.make_node("Resize", ["c", "", "scales"], ["y"], "up", mode="nearest"),
            {"scales": np.array([1, 1, 2, 2], np.float32)},
            19,
        ),
        (helper.make_node("Gelu", ["c"], ["y"], "gelu", approximate="tanh"), {}, 20),
        (helper.make_node("GlobalMaxPool", ["c"], ["y"], "pool"), {}, 17),
        (helper.make_node("HardSwish", ["c"], ["y"], "act"), {}, 22),
    ],
    ids=lambda value: f"{value.op_type}" if isinstance(value, onnx.NodeProto) else None,
)
def test_operators_of_newer_versions_are_converted(node, tensors, opset):
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1])
    tensors = {"w": random(8, 6, 3, 3)} | tensors
    model = network([conv, node], tensors, opset=opset, ir_version=10)
    built, inputs = module_of(model), inputs_for(model)
    assert not built.obstacle
    with torch.no_grad():
        outputs = built(inputs).numpy()
    np.testing.assert_allclose(outputs, outputs_in_runtime(model, inputs), rtol=1e-4, atol=1e-5)
    built(inputs).sum().backward()
    assert built.conv.weight.grad.any()


@pytest.mark.parametrize(
    ("factor", "reason"),
    [(1.1, "its conversion changes the outputs by"), (float("nan"), "an operation fails")],
)
def test_changed_and_missing_numbers_are_detected(factor, reason, monkeypatch):
    model = convolution(random(8, 6, 3, 3), pads=[1, 1, 1, 1])
    right = graph_module.converted

    def wrong(*arguments):
        steps, missing = right(*arguments)

        def changed(values):
            steps[-1](values)
            values["y"] = factor * values["y"]

        changed.reads = steps[-1].reads
        return [*steps[:-1], changed], missing

    monkeypatch.setattr(graph_module, "converted", wrong)
    assert module_of(model).obstacle.startswith(reason)


def test_removed_channels_leave_the_graph_and_are_not_trained():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], "second"),
    ]
    model = network(nodes, {"w": random(10, 6, 3, 3), "v": random(5, 10, 1, 1)})
    built = module_of(model)
    layer = next(site.layer for site in built.origin.sites if site.layer.name == "second")
    factors = decompose(
        get_factorization("remove_channels"), layer, random(5, 10, 1, 1), None, (4,)
    )
    put_factors(built, "second", factors.sequence, factors.tensors, source="second")
    trained = [name for name, tensor in built.named_parameters() if tensor.requires_grad]
    assert [name for name in trained if name.startswith("second")] == ["second.1.weight"]
    written = model_of(built)
    kernels = sorted(tuple(tensor.dims) for tensor in written.graph.initializer)
    assert kernels == [(4, 6, 3, 3), (5, 4, 1, 1)]
    inputs = torch.from_numpy(random(3, 6, 9, 8, seed=5))
    with torch.no_grad():
        expected = built(inputs)
    np.testing.assert_allclose(outputs_in_runtime(written, inputs), expected, rtol=1e-4, atol=1e-4)
