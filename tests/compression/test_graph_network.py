"""ONNX files are compressed as modules are."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx_graphs import network, random, reader_of_words, words_and_features
from torch import nn

import lowrank
from lowrank.compression.graph_moments import graph_moments
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.module_network import ModuleNetwork
from lowrank.devices import MeasureSettings
from lowrank.devices.runtime import load_runner
from lowrank.errors import UserError
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_networks.graph_layers import find_sites
from lowrank.onnx_networks.model_file import input_shapes, read_model
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments
from lowrank.tasks import get_task
from lowrank.zoo.registry import NetworkSpec

SHAPE = (3, 16, 16)
FACTORIZE = {"conv": "tucker2", "linear": "svd", "pointwise_conv": "svd", "flattened_linear": "svd"}


def module() -> nn.Module:
    """Return a network with strides, groups and a linear layer behind a map."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 1, bias=False),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 20),
    ).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export_onnx(module(), NetworkSpec("model", SHAPE, num_classes=20), path)
    return path


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, *SHAPE, generator=generator) for size in (20, 12)]


def outputs_of(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (name,) = (entry.name for entry in session.get_inputs())
    return session.run(None, {name: images.numpy()})[0]


def test_moments_are_those_of_the_module(file, images):
    model = read_model(file)
    shapes = input_shapes(file, model)
    sites = find_sites(model, shapes, "model")
    (name,) = shapes
    batches = [{name: batch.numpy()} for batch in images]
    moments = graph_moments(model, sites, batches, shapes, "model")
    network = module()
    expected = input_moments(network, find_layers(network, SHAPE, "model").layers, images)
    assert moments.keys() == expected.keys()
    for layer, values in expected.items():
        scale = np.abs(values.covariance).max()
        assert moments[layer].samples == values.samples
        assert np.allclose(moments[layer].mean, values.mean, atol=1e-5), layer
        assert np.allclose(moments[layer].covariance, values.covariance, atol=1e-5 * scale), layer


@pytest.mark.parametrize("options", [{}, {"images": True}, {"images": True, "sequential": True}])
def test_a_file_and_its_module_give_the_same_network(file, images, options):
    options = options | ({"images": images} if "images" in options else {})
    ranks = {"select": "ratio", "ratio": 2, "negligible": 0, "largest_drop": 1}
    options |= {"ranks": ranks, "factorize": FACTORIZE}
    from_module = lowrank.compress(module(), SHAPE, **options)
    from_file = lowrank.compress(file, **options)
    keys = ("name", "factorization", "ranks", "macs", "dense_because")
    assert [[getattr(layer, key) for key in keys] for layer in from_file.layers] == [
        [getattr(layer, key) for key in keys] for layer in from_module.layers
    ]
    expected = from_module.network(images[0]).detach().numpy()
    error = np.abs(outputs_of(from_file.network, images[0]) - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def test_a_target_of_macs_is_met(file, images):
    small = lowrank.compress(
        file,
        images=[batch.numpy() for batch in images],
        factorize=FACTORIZE,
        ranks={"select": "budget", "target": {"macs": 0.5}, "negligible": 0, "largest_drop": 1},
    )
    original = sum(layer.dense_macs for layer in find_layers(module(), SHAPE, "model").layers)
    planned = {layer.name: layer.macs for layer in small.layers}
    assert sum(after for _, after in planned.values()) <= 0.5 * original
    # The outputs are no distribution, so their error counts.
    assert small.expected.metric.key == "error"
    expected = module()(torch.cat(images)).detach().numpy()
    error = outputs_of(small.network, torch.cat(images)) - expected
    relative = np.linalg.norm(error) / np.linalg.norm(expected - expected.mean(0))
    assert small.expected.after == pytest.approx(100 * relative, rel=1e-3)


def test_the_export_is_a_file_with_the_names_of_the_original(file, tmp_path):
    small = lowrank.compress(
        file, factorize=FACTORIZE, ranks={"select": "ratio", "ratio": 2, "negligible": 0}
    )
    small.export(tmp_path / "small.onnx")
    before, after = onnx.load(file), onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    assert (tmp_path / "small.onnx").stat().st_size < 0.7 * file.stat().st_size


def test_a_network_with_two_inputs_and_outputs(tmp_path):
    """Batches are mappings; one output is a distribution, the other one is not."""
    make = helper.make_node
    model = network(
        [
            make("Conv", ["image", "w"], ["c"], "conv"),
            make("GlobalAveragePool", ["c"], ["p"]),
            make("Flatten", ["p"], ["f"]),
            make("Add", ["f", "bias"], ["s"]),
            make("Softmax", ["s"], ["classes"], axis=1),
            make("MatMul", ["s", "v"], ["box"], "head"),
        ],
        {"w": random(12, 3, 3, 3), "v": random(12, 8, seed=1)},
        inputs={"image": ("batch", 3, 9, 8), "bias": ("batch", 12)},
        outputs=("classes", "box"),
    )
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    ranks = {"select": "ratio", "ratio": 1.5, "negligible": 0, "largest_drop": 1}
    batch = {"image": random(16, 3, 9, 8, seed=2), "bias": torch.zeros(16, 12)}
    factorize = FACTORIZE | {"first_conv": "tucker1"}
    small = lowrank.compress(path, images=[batch], ranks=ranks, factorize=factorize)
    assert [layer.name for layer in small.layers if not layer.is_dense] == ["conv", "head"]
    assert small.expected.metric.key == "error"
    assert 0 < small.expected.after < 100
    with pytest.raises(UserError, match="has 2 inputs, 'image', 'bias', but one value was given"):
        lowrank.compress(path, images=[batch["image"]], ranks=ranks)


def test_sizes_that_the_file_leaves_open_come_from_the_images(tmp_path):
    model = network(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        {"w": random(16, 8, 3, 3)},
        inputs={"x": ("batch", 8, "height", "width")},
    )
    onnx.save(model, tmp_path / "open.onnx")
    ranks = {"select": "ratio", "ratio": 2, "negligible": 0, "largest_drop": 1}
    options = {"ranks": ranks, "factorize": {"first_conv": "tucker1"}}
    for given in (
        {"images": [random(4, 8, 9, 7)]},
        {"inputs": {"x": (1, 8, 9, 7)}},
        {"input_shape": (8, 9, 7)},
    ):
        small = lowrank.compress(tmp_path / "open.onnx", **options, **given)
        assert small.layers[0].macs[0] == 16 * 8 * 9 * 7 * 5
    with pytest.raises(UserError, match="leaves the size of input 'x' open"):
        lowrank.compress(tmp_path / "open.onnx", **options)


def test_outputs_that_are_distributions_are_compared_by_their_answers(tmp_path):
    model = network(
        [
            helper.make_node("MatMul", ["x", "w"], ["s"], "fc"),
            helper.make_node("Softmax", ["s"], ["y"], "softmax", axis=1),
        ],
        {"w": random(16, 10)},
        inputs={"x": ("batch", 16)},
    )
    onnx.save(model, tmp_path / "classes.onnx")
    samples = random(200, 16, seed=1)
    small = lowrank.compress(
        tmp_path / "classes.onnx",
        images=[samples],
        factorize={"linear": "svd"},
        ranks={"select": "ratio", "ratio": 2, "negligible": 0, "largest_drop": 1},
    )
    answers = [
        onnxruntime.InferenceSession(net.SerializeToString()).run(None, {"x": samples})[0].argmax(1)
        for net in (model, small.network)
    ]
    assert small.expected.metric.key == "agreement"
    assert small.expected.after == pytest.approx(100 * np.mean(answers[0] == answers[1]))
    assert small.expected.chance == pytest.approx(100 * np.bincount(answers[0]).max() / 200)


def test_a_network_without_a_layer_to_replace_is_an_error(file, tmp_path):
    onnx.save(network([helper.make_node("Relu", ["x"], ["y"], "relu")], {}), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match="has no convolution and no product with a stored weight"):
        lowrank.compress(tmp_path / "relu.onnx")
    with pytest.raises(UserError, match=r"`factorize` selects none of its layers \(0: conv, "):
        lowrank.compress(file, factorize={"conv": "tucker2", "include": ["nothing"]})


def test_factors_are_not_fitted_to_the_samples_of_their_losses(file, images):
    batches = [np.asarray(batch.numpy()) for batch in images]
    by_file = GraphNetwork.read(file, None, batches).divided()
    task = get_task("classification")
    by_module = ModuleNetwork.of(module(), SHAPE, task, images).divided()
    for network_of_file, network_of_module, count in zip(by_file, by_module, (24, 8), strict=True):
        (name,) = network_of_file.shapes
        arrays = np.concatenate([batch[name] for batch in network_of_file.batches])
        assert len(arrays) == count
        np.testing.assert_array_equal(arrays, torch.cat(list(network_of_module.batches)).numpy())
    parts = [np.concatenate([b[name] for b in network.batches]) for network in by_file]
    assert not {part.tobytes() for part in parts[0]} & {part.tobytes() for part in parts[1]}


def test_a_part_of_the_samples_gives_a_similar_change(file, images):
    original = GraphNetwork.read(file, None, [batch.numpy() for batch in images])
    changed = original.copy()
    weights = {tensor.name: tensor for tensor in changed.model.graph.initializer}
    name = next(name for name, tensor in weights.items() if len(tensor.dims) == 4)
    array = onnx.numpy_helper.to_array(weights[name])
    weights[name].CopyFrom(onnx.numpy_helper.from_array(1.1 * array, name))
    whole, part = changed.expected_from(original), changed.expected_from(original, 10)
    assert whole is not None
    assert part is not None
    assert (whole.images, part.images) == (32, 10)
    assert 0 < part.after == pytest.approx(whole.after, rel=0.3)


def test_samples_are_divided_into_pieces_that_run_fast(file, tmp_path):
    """The inputs of all layers of one sample take 30 kB, so 80 MB are 2,700 samples."""
    samples = np.zeros((4000, *SHAPE), np.float32)
    pieces = GraphNetwork.read(file, None, [samples, samples[:100]]).batches
    (name,) = pieces[0]
    lengths = [len(piece[name]) for piece in pieces]
    assert sum(lengths) == 4100
    assert lengths == [2693, 1307, 100]
    # A file that fixes the size of its batch takes no other.
    fixed = onnx.load(file)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4000
    onnx.save(fixed, tmp_path / "fixed.onnx")
    pieces = GraphNetwork.read(tmp_path / "fixed.onnx", None, [samples]).batches
    assert [len(piece[name]) for piece in pieces] == [4000]


def test_a_network_of_several_inputs_can_be_measured(tmp_path):
    """A target of latency measures the file with the sizes of one sample."""
    onnx.save(reader_of_words(), tmp_path / "reader.onnx")
    network = GraphNetwork.read(tmp_path / "reader.onnx", None, [words_and_features(30)])
    network.write_fixed(tmp_path / "fixed.onnx")
    (output,) = load_runner(tmp_path / "fixed.onnx", MeasureSettings())()
    assert output.shape == (1, 4)
