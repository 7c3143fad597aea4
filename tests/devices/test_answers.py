"""The outputs of models on a device, and the limits of rounding differences."""

import numpy as np
import onnx
import pytest
from onnx_graphs import reader_of_words, words_and_features

from lowrank.config.device_kinds import create_device
from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError, MeasureSettings
from lowrank.devices.answers import agreement, answers, expected_answers
from lowrank.onnx_files.single_layers import side_by_side
from lowrank.onnx_networks.model_run import ModelRun

EXPECTED = np.random.default_rng(0).standard_normal((40, 10)).tolist()


def with_noise(by: float, images: int = 40) -> list[list[float]]:
    """Return the expected outputs with noise in some images, `by` times the norm of them all."""
    noise = np.zeros((40, 10))
    noise[:images] = np.random.default_rng(1).standard_normal((images, 10))
    scale = by * np.linalg.norm(EXPECTED) / max(np.linalg.norm(noise), 1e-9)
    return (np.array(EXPECTED) + scale * noise).tolist()


@pytest.mark.parametrize(("by", "warns"), [(0.0, False), (5e-4, False), (2e-3, True)])
def test_float_outputs_may_differ_by_rounding(by, warns):
    comparison = agreement(with_noise(by), EXPECTED)
    assert comparison["images"] == 40
    assert comparison["relative_error"] == pytest.approx(by)
    assert (comparison["warning"] is not None) == warns


@pytest.mark.parametrize(
    ("by", "by_int8", "warns"),
    [
        pytest.param(0.01, 0.002, False, id="rounding"),
        pytest.param(0.2, 0.01, True, id="saturation"),
        pytest.param(0.12, 0.2, False, id="a network that amplifies rounding"),
    ],
)
def test_int8_outputs_may_be_as_far_from_float_as_the_reference(by, by_int8, warns):
    noise = np.random.default_rng(2).standard_normal((40, 10))
    in_float = EXPECTED + by_int8 * np.linalg.norm(EXPECTED) / np.linalg.norm(noise) * noise
    comparison = agreement(with_noise(by), EXPECTED, in_float.tolist())
    assert comparison["relative_error"] == pytest.approx(by)
    assert (comparison["warning"] is not None) == warns


def test_images_with_another_class_are_counted():
    other = np.array(EXPECTED)
    other[:3] = np.roll(other[:3], 1, axis=1)
    comparison = agreement(other.tolist(), EXPECTED, EXPECTED, are_classes=True)
    assert comparison["changed_percent"] == 7.5
    assert "7.5 % of 40 images get another class" in comparison["warning"]
    comparison = agreement(other.tolist(), EXPECTED, EXPECTED)
    assert comparison["changed_percent"] is None
    assert "class" not in comparison["warning"]


def test_outputs_that_are_not_numbers_cause_a_warning():
    comparison = agreement(np.full((40, 10), np.nan).tolist(), EXPECTED, EXPECTED)
    assert comparison["warning"]
    assert np.isfinite(comparison["relative_error"])


@pytest.fixture
def model(tmp_path):
    layers = [(PlainLayer(3, 8, (3, 3), padding=(1, 1), bias=True), (8, 8))]
    onnx.save(side_by_side(layers), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def test_a_device_computes_outputs_for_real_images(model, tmp_path):
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    outputs = create_device("local", {}).answers(model, tmp_path / "images.npy", {})
    expected = expected_answers(model, tmp_path / "images.npy", MeasureSettings())
    assert np.shape(outputs) == np.shape(expected) == (5, 8)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_images_of_another_size_are_an_error(model, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 9, 9), np.float32))
    with pytest.raises(
        DeviceError, match=r"takes inputs of the shapes .*images\.npy\) have the shapes .*9, 9\)"
    ):
        answers(model, tmp_path / "images.npy", MeasureSettings())


def test_several_inputs_come_from_an_npz_file(tmp_path):
    onnx.save(reader_of_words(), tmp_path / "reader.onnx")
    feed = words_and_features(5)
    np.savez(tmp_path / "samples.npz", **feed)
    outputs = create_device("local", {}).answers(
        tmp_path / "reader.onnx", tmp_path / "samples.npz", {"batch_size": 2}
    )
    (expected,) = ModelRun(reader_of_words(), "reader")(feed).values()
    np.testing.assert_allclose(outputs, expected[:4], atol=1e-5)
    np.savez(tmp_path / "samples.npz", words=feed["words"])
    with pytest.raises(DeviceError, match=r"takes inputs of the shapes .*features.*samples\.npz"):
        answers(tmp_path / "reader.onnx", tmp_path / "samples.npz", MeasureSettings())
