import hashlib

import numpy as np
import pytest
import torch
from photos import photo
from pydantic import ValidationError
from torch.nn import functional

from lowrank.config.training import Augmentation
from lowrank.core.background import in_background
from lowrank.data.batches import AugmentedBatches, EvaluationBatches
from lowrank.data.datasets import Split
from lowrank.data.images import StoredImages
from lowrank.data.preprocessing import evaluation_image, to_input
from lowrank.errors import UserError
from lowrank.zoo import NetworkSpec

HEIGHT, WIDTH = 6, 5
SPEC = NetworkSpec("any", (3, HEIGHT, WIDTH), 10)


def split_of(count):
    """Return a split of every second image; each image has its own label."""
    images = np.random.default_rng(0).integers(0, 256, (2 * count, HEIGHT, WIDTH, 3), np.uint8)
    return Split(images, np.arange(2 * count), np.arange(0, 2 * count, 2))


def batches_of(split, batch_size=4, pad_pixels=2, flip=True, cutout_pixels=0, seed=0):
    augment = Augmentation(pad_pixels=pad_pixels, flip=flip, cutout_pixels=cutout_pixels)
    return AugmentedBatches(split, SPEC, batch_size=batch_size, augment=augment, seed=seed)


def epoch_of(batches, epoch):
    """Return all images and labels of one epoch."""
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    images, labels = zip(*(batches[step] for step in steps), strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


def flips_of(split, images, labels):
    """Return for each label whether its image is flipped; nothing else may be changed."""
    flips = {}
    for image, label in zip(images, labels, strict=True):
        original = to_input(split.images[[label]], SPEC)[0]
        flips[label] = torch.equal(image, original.flip(2))
        assert flips[label] or torch.equal(image, original)
    return flips


def test_batch_depends_only_on_seed_and_step():
    split = split_of(22)
    in_order = batches_of(split)
    expected = [in_order[step] for step in range(15)]
    for step in (14, 3, 9, 0, 4):
        assert_same_batch(batches_of(split)[step], expected[step])
    in_reverse = batches_of(split)
    for step in reversed(range(15)):
        assert torch.equal(in_reverse[step][0], expected[step][0])


def test_other_seeds_give_other_batches():
    split = split_of(40)
    assert batches_of(split, seed=0)[0][1].tolist() != batches_of(split, seed=1)[0][1].tolist()


def test_shapes_and_types():
    images, labels = batches_of(split_of(22))[0]
    assert images.shape == (4, 3, HEIGHT, WIDTH)
    assert images.dtype == torch.float32
    assert labels.shape == (4,)
    assert labels.dtype == torch.int64


def test_epoch_contains_every_image_once():
    split = split_of(20)
    orders = [epoch_of(batches_of(split), epoch)[1] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == split.rows.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_incomplete_last_batch_is_dropped():
    batches = batches_of(split_of(23))
    assert batches.batches_per_epoch == 5
    for epoch in range(3):
        _, labels = epoch_of(batches, epoch)
        assert len(set(labels)) == len(labels) == 20


def test_flips_alternate_from_epoch_to_epoch():
    split = split_of(60)
    batches = batches_of(split, pad_pixels=0)
    first, second, third = (flips_of(split, *epoch_of(batches, epoch)) for epoch in range(3))
    assert second == {label: not flip for label, flip in first.items()}
    assert third == first
    assert 15 < sum(first.values()) < 45


def test_without_augmentation_images_are_unchanged():
    split = split_of(20)
    batches = batches_of(split, pad_pixels=0, flip=False)
    for epoch in range(2):
        assert not any(flips_of(split, *epoch_of(batches, epoch)).values())


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_is_a_crop_of_its_padded_original(flip):
    pad = 2
    split = split_of(20)
    batches = batches_of(split, pad_pixels=pad, flip=flip)
    positions = []
    for epoch in range(12):
        for image, label in zip(*epoch_of(batches, epoch), strict=True):
            original = to_input(split.images[[label]], SPEC)
            padded = functional.pad(original, (pad, pad, pad, pad), mode="reflect")[0]
            matches = {
                (top, left)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
                for flipped in ((False, True) if flip else (False,))
                if torch.equal(crop_of(padded, top, left, flipped), image)
            }
            assert matches, "no crop of the padded image"
            positions += matches
    # All 25 positions are equally likely: 240 images, so 9.6 per position.
    counts = [positions.count(position) for position in set(positions)]
    assert len(counts) == (2 * pad + 1) ** 2
    assert max(counts) < 30


def crop_of(padded, top, left, flipped):
    crop = padded[:, top : top + HEIGHT, left : left + WIDTH]
    return crop.flip(2) if flipped else crop


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match="3 training images do not fill one batch of `batch_size`"):
        batches_of(split_of(3))


def test_cutout_sets_one_square_to_the_mean_color():
    split = split_of(40)
    plain = epoch_of(batches_of(split), 0)
    cut = epoch_of(batches_of(split, cutout_pixels=4), 0)
    assert cut[1] == plain[1]
    covered = cut[0] != plain[0]
    assert (cut[0][covered] == 0).all()
    complete_squares = 0
    for pixels in covered.any(1):  # (H, W)
        rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
        height, width = (int(indices[-1] - indices[0]) + 1 for indices in (rows, columns))
        assert pixels.sum() == height * width  # one filled rectangle
        assert 2 <= height <= 4  # at a border, a part of it is outside the image
        assert 2 <= width <= 4
        complete_squares += (height, width) == (4, 4)
    assert complete_squares > 0


def test_batches_are_the_same_as_in_the_first_release():
    images = (np.arange(40 * 6 * 5 * 3) ** 2 % 251).astype(np.uint8).reshape(40, 6, 5, 3)
    split = Split(images, np.arange(40), np.arange(0, 40, 2))
    batches = batches_of(split, pad_pixels=2, cutout_pixels=2, seed=3)
    digest = hashlib.sha256()
    for step in (0, 4, 5, 13):
        for part in batches[step]:
            digest.update(part.contiguous().numpy().tobytes())
    # Digest of the first release: a change here would change every result.
    expected = "db7fd7d0c869a7ed0745b589b09c4a96571cbcd35c5a5974ddc8cfbc6ffe076c"
    assert digest.hexdigest() == expected


MIXED_SIZES_SPEC = NetworkSpec("any", (3, 20, 16), 10, resize=24)
AUGMENTATIONS = [
    {"pad_pixels": 2},
    {"pad_pixels": 0, "flip": False},
    {"resized_crop": (0.3, 1.0), "cutout_pixels": 6},
]


def split_of_mixed_sizes(count=22, side=20):
    generator = np.random.default_rng(1)
    sizes = generator.integers(side, 2 * side, (2 * count, 2))
    pixels = [photo(*size, seed=number).ravel() for number, size in enumerate(sizes)]
    images = StoredImages(np.concatenate(pixels), sizes)
    return Split(images, np.arange(2 * count), np.arange(0, 2 * count, 2))


def batches_of_mixed_sizes(split, seed=0, spec=MIXED_SIZES_SPEC, **augment):
    return AugmentedBatches(split, spec, batch_size=4, augment=Augmentation(**augment), seed=seed)


def assert_same_batch(batch, expected):
    for tensor, expected_tensor in zip(batch, expected, strict=True):
        assert torch.equal(tensor, expected_tensor)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_batch_of_mixed_sizes_depends_only_on_seed_and_step(augment, threads):
    split = split_of_mixed_sizes()
    expected = [batches_of_mixed_sizes(split, **augment)[step] for step in range(12)]
    in_another_order = batches_of_mixed_sizes(split, **augment)
    for step in (11, 4, 0, 7):
        assert_same_batch(in_another_order[step], expected[step])
    # Resume at step 3, with batches prepared by threads.
    batches = batches_of_mixed_sizes(split, **augment)
    resumed = in_background(batches.__getitem__, range(3, 12), threads)
    for batch, expected_batch in zip(resumed, expected[3:], strict=True):
        assert_same_batch(batch, expected_batch)
    other_seed = batches_of_mixed_sizes(split, seed=1, **augment)[0]
    assert not torch.equal(other_seed[1], expected[0][1])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_epoch_of_mixed_sizes_contains_every_image_at_input_size(augment):
    split = split_of_mixed_sizes(20)
    batches = batches_of_mixed_sizes(split, **augment)
    for epoch in range(2):
        images, labels = epoch_of(batches, epoch)
        assert images.shape == (20, *MIXED_SIZES_SPEC.input_shape)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert sorted(labels) == split.rows.tolist()


def test_resized_crop_differs_for_each_epoch_and_seed():
    split = split_of_mixed_sizes(20)
    seen = set()
    for seed in range(2):
        batches = batches_of_mixed_sizes(split, seed, resized_crop=(0.3, 0.9), flip=False)
        for epoch in range(3):
            images, labels = epoch_of(batches, epoch)
            seen.add(images[labels.index(0)].numpy().tobytes())
    assert len(seen) == 6


def test_flips_of_stored_images_alternate():
    # Images of input size are only flipped.
    spec = NetworkSpec("any", (3, 24, 24), 10, resize=24)
    sizes = np.full((40, 2), 24)
    pixels = np.concatenate([photo(24, 24, seed=number).ravel() for number in range(40)])
    split = Split(StoredImages(pixels, sizes), np.arange(40), np.arange(40))
    batches = batches_of_mixed_sizes(split, spec=spec, pad_pixels=0)
    epochs = (epoch_of(batches, epoch) for epoch in (0, 1))
    first, second = (dict(zip(labels, images, strict=True)) for images, labels in epochs)
    flipped = 0
    for label, image in first.items():
        assert torch.equal(second[label], image.flip(2))
        flipped += not torch.equal(image, to_input(split.images[label][None], spec)[0])
    assert 8 < flipped < 32


def test_crop_without_padding_is_the_evaluation_crop():
    split = split_of_mixed_sizes(20)
    batches = batches_of_mixed_sizes(split, pad_pixels=0, flip=True)
    for step in (0, batches.batches_per_epoch):
        images, labels = batches[step]
        flipped = batches.flipped(step)
        assert set(flipped) == {True, False}
        for image, label, flip in zip(images, labels, flipped, strict=True):
            expected = evaluation_image(split.images[int(label)], MIXED_SIZES_SPEC)
            expected = to_input(expected[None], MIXED_SIZES_SPEC)[0]
            assert torch.equal(image, expected.flip(2) if flip else expected)


def test_arrays_of_another_size_are_resized_to_the_input():
    images = np.stack([photo(28, 28, seed=number)[..., :1] for number in range(8)])
    split = Split(images, np.arange(8), np.arange(8))
    spec = NetworkSpec("any", (3, 32, 32), 10)
    inputs, labels = AugmentedBatches(
        split, spec, batch_size=8, augment=Augmentation(pad_pixels=0, flip=False), seed=0
    )[0]
    for image, label in zip(inputs, labels, strict=True):
        resized = evaluation_image(images[label], spec)
        assert torch.equal(image, to_input(resized[None], spec)[0])


def test_resized_crop_of_arrays_of_input_size():
    split = split_of(20)
    batches = AugmentedBatches(
        split, SPEC, batch_size=4, augment=Augmentation(resized_crop=(0.5, 0.5)), seed=0
    )
    images, labels = batches[0]
    assert images.shape == (4, 3, HEIGHT, WIDTH)
    assert not torch.equal(images[0], to_input(split.images[[int(labels[0])]], SPEC)[0])


def test_evaluation_batches_contain_all_images_in_order():
    for split in (split_of(300), split_of_mixed_sizes(300)):
        spec = SPEC if isinstance(split.images, np.ndarray) else MIXED_SIZES_SPEC
        batches = EvaluationBatches(split, spec)
        all_batches = [batches[number] for number in range(len(batches))]
        images, labels = (torch.cat(part) for part in zip(*all_batches, strict=True))
        assert labels.tolist() == split.rows.tolist()
        expected = evaluation_image(split.images[split.rows[7]], spec)
        assert torch.equal(images[7], to_input(expected[None], spec)[0])


@pytest.mark.parametrize(("side", "images"), [(32, 250), (224, 39), (600, 5), (3000, 1)])
def test_large_images_are_evaluated_in_small_batches(side, images):
    class Blank:
        def __len__(self):
            return 1000

        def __getitem__(self, number):
            return np.zeros((side, side, 3), np.uint8)

    split = Split(Blank(), np.zeros(1000, np.int64), np.arange(1000))
    batches = EvaluationBatches(split, NetworkSpec("any", (3, side, side), 10))
    assert len(batches[0][1]) == images
    assert len(batches) == -(-1000 // images)


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)])
def test_invalid_shares_of_a_crop(shares):
    with pytest.raises(ValidationError, match="two shares in ascending order"):
        Augmentation(resized_crop=shares)
