import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photos import photo
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from lowrank.data.preprocessing import (
    evaluation_image,
    is_input,
    resized_crop,
    resized_size,
    to_input,
    translated_image,
)
from lowrank.zoo import NetworkSpec

SIZES = [(375, 500), (500, 375), (256, 256), (300, 260), (257, 1000), (90, 120), (256, 341)]


def spec_of(side=224, resize=256, channels=3, **fields):
    means = (0.485, 0.456, 0.406)[:channels]
    return NetworkSpec("any", (channels, side, side), 10, means, (0.25,) * channels, **fields,
                       resize=resize)  # fmt: skip


def test_to_input_matches_torchvision():
    spec = NetworkSpec("any", (3, 6, 5), 10)
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), np.uint8)
    convert = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(mean=spec.mean, std=spec.std)]
    )
    expected = torch.stack([convert(image) for image in images])
    inputs = to_input(images, spec)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-6)


def test_bgr_networks_get_blue_first():
    # Caffe's input: 8-bit values minus the mean, blue first.
    spec = NetworkSpec(
        "caffe", (3, 1, 1), 10, (104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3, "bgr"
    )
    inputs = to_input(np.array([[[[200, 100, 50]]]], np.uint8), spec)
    assert inputs.flatten().tolist() == pytest.approx([50 - 104, 100 - 117, 200 - 123], abs=1e-4)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "resize"), [(224, 256), (224, 232), (224, 224), (299, 342)])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_matches_torchvision_preset(size, side, resize, interpolation):
    image = photo(*size)
    spec = spec_of(side, resize, interpolation=interpolation)
    preset = ImageClassification(
        crop_size=side,
        resize_size=resize,
        mean=spec.mean,
        std=spec.std,
        interpolation=InterpolationMode(interpolation),
    )
    expected = preset(Image.fromarray(image))
    inputs = to_input(evaluation_image(image, spec)[None], spec)[0]
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    needed=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resize=st.none() | st.integers(1, 400),
)
def test_resized_image_covers_the_input_and_keeps_its_aspect_ratio(size, needed, resize):
    spec = NetworkSpec("any", (3, *needed), 10, resize=resize)
    resized = resized_size(size, spec)
    assert all(side >= least for side, least in zip(resized, needed, strict=True))
    shorter, longer = min(size), max(size)
    assert max(resized) == pytest.approx(min(resized) * longer / shorter, abs=longer / shorter + 1)
    if resize is None:
        assert any(side == least for side, least in zip(resized, needed, strict=True))


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), resize=st.none() | st.integers(1, 40),
    channels=st.sampled_from([1, 3]), gray=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_image_is_turned_into_the_input_shape(height, width, resize, channels, gray, seed):
    spec = NetworkSpec("any", (channels, 9, 7), 10, resize=resize)
    image = photo(height, width, seed)[..., :1] if gray else photo(height, width, seed)
    generator = np.random.default_rng(seed)
    for output in (
        evaluation_image(image, spec),
        translated_image(image, spec, 3, generator),
        resized_crop(image, spec, (0.1, 1.0), generator),
    ):
        assert output.shape == (9, 7, channels)
        assert output.dtype == np.uint8


def test_image_of_input_size_is_not_changed():
    image, spec = photo(32, 32), spec_of(32, None)
    assert is_input(image.shape, spec)
    np.testing.assert_array_equal(evaluation_image(image, spec), image)
    assert not is_input(image.shape, spec_of(32, 36))
    assert not is_input(image.shape, spec_of(28, None))
    assert not is_input((32, 32, 1), spec)


def test_grayscale_is_repeated_for_three_input_channels():
    gray = photo(28, 28)[..., :1]
    image = evaluation_image(gray, spec_of(28, None))
    np.testing.assert_array_equal(image, np.repeat(gray, 3, axis=2))


def test_small_grayscale_images_are_enlarged_to_the_input():
    image = evaluation_image(photo(28, 28)[..., :1], spec_of(32, None))
    expected = Image.fromarray(photo(28, 28)[..., 0]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image[..., 1], np.asarray(expected))


def test_color_is_converted_to_grayscale_for_one_input_channel():
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    gray = evaluation_image(image, spec_of(4, None, channels=1))
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert (gray == 124).all()
    assert gray.shape == (4, 4, 1)


def test_resized_crop_matches_torchvision_at_the_same_position():
    image, spec = photo(120, 150), spec_of(64)
    crop = resized_crop(image, spec, (0.3, 0.3), np.random.default_rng(3))
    matches = 0
    boxes = recorded_boxes((120, 150), (0.3, 0.3), seed=3)
    for left, top, right, bottom in boxes:
        expected = transforms.functional.resized_crop(
            Image.fromarray(image), top, left, bottom - top, right - left, [64, 64]
        )
        matches += np.array_equal(crop, np.asarray(expected))
    assert matches == 1


def recorded_boxes(size, shares, seed, count=1):
    from lowrank.data.preprocessing import _random_box

    generator = np.random.default_rng(seed)
    return [_random_box(size, shares, generator) for _ in range(count)]


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (100, 100)])
@pytest.mark.parametrize("shares", [(0.08, 1.0), (0.35, 1.0), (0.5, 0.5)])
def test_random_crops_have_the_distribution_of_torchvision(size, shares):
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(blank, list(shares), [3 / 4, 4 / 3])
            for _ in range(1500)
        ]
    )
    boxes = np.array(recorded_boxes(size, shares, seed=0, count=1500))
    ours = np.stack(
        [boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1
    )
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    # Top, left, height, width: the means differ by less than four standard errors.
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 1500)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error + 1e-9).all()


@pytest.mark.parametrize(("size", "expected"), [((30, 400), (30, 40)), ((400, 30), (40, 30))])
def test_center_is_used_if_no_crop_fits(size, expected):
    [(left, top, right, bottom)] = recorded_boxes(size, (1.0, 1.0), seed=0)
    assert (bottom - top, right - left) == expected
    assert (left + right, top + bottom) == (size[1], size[0])


def test_translated_image_is_a_crop_of_the_resized_and_padded_image():
    image, spec = photo(40, 60), spec_of(24, 32)
    resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)
    padded = np.pad(np.asarray(resized), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (24, 24, 3))[:, :, 0]
    positions = set()
    for seed in range(60):
        crop = translated_image(image, spec, 2, np.random.default_rng(seed))
        [position] = np.argwhere((windows == crop).all((2, 3, 4)))
        positions.add(tuple(position))
    assert len({top for top, _ in positions}) > 8
    assert max(left for _, left in positions) > 20
