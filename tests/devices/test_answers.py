"""What models answer on a device, and when that is more than rounding off."""

import numpy as np
import onnx
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.devices import DeviceError, MeasureSettings, create_device
from lowrank.devices.answers import agreement, answers, expected_answers
from lowrank.onnx_files.single_layers import side_by_side

EXPECTED = np.random.default_rng(0).standard_normal((40, 10)).tolist()


def moved(by: float, images: int = 40) -> list[list[float]]:
    """The expected answers, some images moved by a share of all their norm."""
    noise = np.zeros((40, 10))
    noise[:images] = np.random.default_rng(1).standard_normal((images, 10))
    scale = by * np.linalg.norm(EXPECTED) / max(np.linalg.norm(noise), 1e-9)
    return (np.array(EXPECTED) + scale * noise).tolist()


@pytest.mark.parametrize(
    ("by", "in_int8", "warns"),
    [
        (0.0, False, False),
        (5e-4, False, False),
        (2e-3, False, True),
        (0.01, True, False),
        (0.2, True, True),
    ],
)
def test_rounding_is_no_fault(by, in_int8, warns):
    found = agreement(moved(by), EXPECTED, in_int8=in_int8)
    assert found["images"] == 40
    assert found["relative_error"] == pytest.approx(by)
    assert (found["warning"] is not None) == warns


def test_few_images_with_another_class_are_seen():
    other = np.array(EXPECTED)
    other[:3] = np.roll(other[:3], 1, axis=1)
    found = agreement((0.01 * other).tolist(), (0.01 * np.array(EXPECTED)).tolist(), in_int8=True)
    assert found["changed_percent"] == 7.5
    assert "7.5 % of 40 images get another class" in found["warning"]


def test_what_is_no_number_is_a_fault():
    found = agreement(np.full((40, 10), np.nan).tolist(), EXPECTED, in_int8=True)
    assert found["warning"]
    assert np.isfinite(found["relative_error"])


@pytest.fixture
def model(tmp_path):
    layers = [(PlainLayer(3, 8, (3, 3), padding=(1, 1), bias=True), (8, 8))]
    onnx.save(side_by_side(layers), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def test_a_device_answers_to_real_images(model, tmp_path):
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    found = create_device("local", {}).answers(model, tmp_path / "images.npy", {})
    expected = expected_answers(model, tmp_path / "images.npy", MeasureSettings())
    assert np.shape(found) == np.shape(expected) == (5, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_of_another_size_are_told(model, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 9, 9), np.float32))
    with pytest.raises(DeviceError, match="takes images of shape"):
        answers(model, tmp_path / "images.npy", MeasureSettings())
