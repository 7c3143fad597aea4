"""Networks with other inputs than images, from the arrays to the int8 file."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_graphs import network, random, reader_of_words, words_and_features

from lowrank.config.dataset import DatasetSettings
from lowrank.config.finetune import Distillation, RoundSettings
from lowrank.config.network_source import NetworkSource
from lowrank.config.quantize import QuantizeSettings
from lowrank.core.tensors import length
from lowrank.data.datasets import open_dataset
from lowrank.data.input_arrays import store_arrays
from lowrank.devices.processor import IntegerTypes
from lowrank.errors import UserError
from lowrank.evaluation.device_measurements import real_images
from lowrank.evaluation.exported import ExportedNetworks
from lowrank.evaluation.int8_networks import Int8Networks
from lowrank.evaluation.network import inputs_of, measure
from lowrank.evaluation.reference import Reference
from lowrank.factorize import decompose, get_factorization
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_files.measured_form import measured_form
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments
from lowrank.surgery.states import State, write_state
from lowrank.tasks import get_task
from lowrank.training.distillation import AugmentedTeacher, read_outputs, write_outputs
from lowrank.training.loop import train
from lowrank.training.maps import layers_to_watch
from lowrank.zoo.creation import create

AGREEMENT = get_task("agreement")
SAMPLES = 60


def sequences(count: int) -> dict[str, np.ndarray]:
    return {"x": random(count, 3, 7, seed=5)}


def reader_of_sequences() -> onnx.ModelProto:
    """Return a network of one input, (batch, steps, features), with an open number of steps."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["hidden"], "/first/MatMul"),
        helper.make_node("Relu", ["hidden"], ["active"], "/relu"),
        helper.make_node("MatMul", ["active", "w2"], ["y"], "/second/MatMul"),
    ]
    tensors = {"w1": random(7, 16), "w2": random(16, 4, seed=1)}
    return network(nodes, tensors, inputs={"x": ("batch", "steps", 7)})


CASES = {
    "two inputs": (reader_of_words(), words_and_features, {}),
    "two inputs of four samples": (reader_of_words(4), words_and_features, {}),
    "sequences": (reader_of_sequences(), sequences, {"x": (1, 3, 7)}),
}


@pytest.fixture(params=CASES, scope="module")
def stored(request, tmp_path_factory):
    """Return the source of a network, its dataset, and the arrays."""
    folder = tmp_path_factory.mktemp("any")
    model, arrays_of, inputs = CASES[request.param]
    onnx.save(model, folder / "net.onnx")
    arrays = arrays_of(SAMPLES)
    np.savez(folder / "x.npz", **arrays, labels=np.arange(SAMPLES) % 4)
    entry = DatasetSettings(kind="arrays", train=str(folder / "x.npz"))
    store_arrays(folder / "dataset", "mine", entry, lambda _: None)
    return NetworkSource(onnx=str(folder / "net.onnx"), inputs=inputs or None), folder


@pytest.mark.seconds
def test_a_layer_is_replaced_by_its_inputs_and_trained(stored):
    source, folder = stored
    (spec, built), (_, original) = create(source), create(source)
    assert not built.obstacle
    data = open_dataset(folder / "dataset").with_reference(Reference(original))
    table = find_layers(built, spec.input_shape, "net", spec.forms)
    layer = table.layers[0]
    batches = [inputs for inputs, _ in inputs_of(built, data.train, spec)]
    moments = input_moments(built, [layer], batches)[layer.name]
    weight = built.get_submodule(layer.name).weight.detach().numpy()[..., None, None]
    factors = decompose(get_factorization("svd"), layer, weight, None, (3,), moments)
    divergence = Divergence(
        built, lambda: batches, lambda outputs, expected: AGREEMENT.divergence(outputs, expected)
    )
    (change,) = divergence([(layer.name, factors)])
    assert 0 < change < 1
    assert measure(AGREEMENT, built, data.test, spec).values["error"] == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        built.get_submodule(layer.name).weight += 0.1
    before = measure(AGREEMENT, built, data.test, spec).values["error"]
    settings = RoundSettings(
        steps=40, batch_size=16, learning_rate=0.5, threads=1, precision="float32",
        augment={"pad_pixels": 0, "flip": False}, average_last=0.1, freeze={"layers": 0.0},
    )  # fmt: skip
    teacher = AugmentedTeacher(original, Distillation(weight=1.0, images="augmented"))
    train(AGREEMENT, built, spec, data, settings, teacher=teacher, say=lambda _: None)
    assert measure(AGREEMENT, built, data.test, spec).values["error"] < 0.8 * before


def test_files_are_measured_in_float_and_in_int8(stored, tmp_path):
    source, folder = stored
    spec, built = create(source)
    data = open_dataset(folder / "dataset").with_reference(Reference(built))
    model = tmp_path / "model.onnx"
    export_onnx(built, spec, model)
    in_runtime = ExportedNetworks(AGREEMENT, spec, threads=1)
    assert in_runtime.compare_with_pytorch(model, built, data.test)["relative_error"] < 1e-4
    assert in_runtime.values(model, data.test)["error"] < 0.01
    with measured_form(model, spec, source, for_counting=True) as fixed:
        assert count(fixed).macs > 0
    settings = QuantizeSettings(images=20, tolerance=100, threads=1, by_time=False)
    (tmp_path / "work").mkdir()
    networks = Int8Networks(
        model, in_runtime, data, settings, tmp_path / "work", lambda _: None, spec.sizes
    )
    networks.write_all({"local": IntegerTypes("uint8", reduce_range=True)}, {}, tmp_path / "int8")
    (record,) = networks.files.values()
    assert 0 < record["accuracy"]["test"]["error"] < 50
    write_state(tmp_path / "state.safetensors", State(spec, built, {}, source))
    with real_images(folder / "dataset", tmp_path / "state.safetensors") as samples:
        assert samples.suffix == (".npz" if len(spec.forms) > 1 else ".npy")


@pytest.mark.parametrize("stored", ["two inputs"], indirect=True)
def test_classification_by_labels(stored):
    source, folder = stored
    spec, built = create(source)
    task, data = get_task("classification"), open_dataset(folder / "dataset")
    inputs, labels = next(inputs_of(built, data.test, spec))
    correct = (built(inputs).argmax(1) == labels).double().mean()
    assert measure(task, built, data.test, spec).values["top1"] == pytest.approx(100 * correct)


def test_only_images_have_maps_and_are_mirrored(stored, tmp_path):
    source, folder = stored
    spec, built = create(source)
    train_split = open_dataset(folder / "dataset").train
    assert layers_to_watch(built, spec) == []
    with pytest.raises(UserError, match=r"teacher_outputs\.mirrored: the dataset has arrays"):
        write_outputs(tmp_path / "outputs", built, train_split, spec, mirrored=True)
    write_outputs(tmp_path / "outputs", built, train_split, spec)
    stored_outputs = read_outputs(tmp_path / "outputs", train_split).logits
    inputs, _ = next(inputs_of(built, train_split, spec))
    with torch.no_grad():
        torch.testing.assert_close(stored_outputs[: length(inputs)], built(inputs))
