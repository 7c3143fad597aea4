import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import transforms

from lowrank.errors import UserError
from lowrank.networks import NetworkSpec
from lowrank.params import Augmentation
from lowrank.training.batches import AugmentedBatches, to_input
from lowrank.training.datasets import Split

HEIGHT, WIDTH = 6, 5
SPEC = NetworkSpec("any", (3, HEIGHT, WIDTH), 10)


def split_of(count):
    """Images that a label tells apart: each has its own. Every other row belongs to the split."""
    images = np.random.default_rng(0).integers(0, 256, (2 * count, HEIGHT, WIDTH, 3), np.uint8)
    return Split(images, np.arange(2 * count), np.arange(0, 2 * count, 2))


def batches_of(split, batch_size=4, pad_pixels=2, flip=True, cutout_pixels=0, seed=0):
    augment = Augmentation(pad_pixels=pad_pixels, flip=flip, cutout_pixels=cutout_pixels)
    return AugmentedBatches(split, SPEC, batch_size=batch_size, augment=augment, seed=seed)


def epoch_of(batches, epoch):
    """All images and labels of one epoch."""
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    images, labels = zip(*(batches[step] for step in steps), strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


def flips_of(split, images, labels):
    """Which images are mirrored, where nothing else is done to them."""
    flips = {}
    for image, label in zip(images, labels, strict=True):
        original = to_input(split.images[[label]], SPEC)[0]
        flips[label] = torch.equal(image, original.flip(2))
        assert flips[label] or torch.equal(image, original)
    return flips


def test_to_input_is_torchvisions_normalisation():
    images = np.random.default_rng(0).integers(0, 256, (9, HEIGHT, WIDTH, 3), np.uint8)
    convert = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(mean=SPEC.mean, std=SPEC.std)]
    )
    expected = torch.stack([convert(image) for image in images])
    found = to_input(images, SPEC)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_depends_on_seed_and_step_alone():
    split = split_of(22)
    in_order = batches_of(split)
    expected = [in_order[step] for step in range(15)]
    for step in (14, 3, 9, 0, 4):
        for found, one in zip(batches_of(split)[step], expected[step], strict=True):
            assert torch.equal(found, one)
    again = batches_of(split)
    for step in reversed(range(15)):
        assert torch.equal(again[step][0], expected[step][0])


def test_other_seeds_give_other_batches():
    split = split_of(40)
    assert batches_of(split, seed=0)[0][1].tolist() != batches_of(split, seed=1)[0][1].tolist()


def test_shapes_and_types():
    images, labels = batches_of(split_of(22))[0]
    assert images.shape == (4, 3, HEIGHT, WIDTH)
    assert images.dtype == torch.float32
    assert labels.shape == (4,)
    assert labels.dtype == torch.int64


def test_every_image_once_an_epoch():
    split = split_of(20)
    orders = [epoch_of(batches_of(split), epoch)[1] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == split.rows.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_an_incomplete_last_batch_is_left_out():
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


def test_without_augmentation_images_are_as_they_are():
    split = split_of(20)
    batches = batches_of(split, pad_pixels=0, flip=False)
    for epoch in range(2):
        assert not any(flips_of(split, *epoch_of(batches, epoch)).values())


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_is_a_crop_of_itself_padded_by_reflection(flip):
    pad = 2
    split = split_of(20)
    batches = batches_of(split, pad_pixels=pad, flip=flip)
    places = []
    for epoch in range(12):
        for image, label in zip(*epoch_of(batches, epoch), strict=True):
            original = to_input(split.images[[label]], SPEC)
            padded = functional.pad(original, (pad, pad, pad, pad), mode="reflect")[0]
            found = {
                (top, left)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
                for mirrored in ((False, True) if flip else (False,))
                if torch.equal(crop_of(padded, top, left, mirrored), image)
            }
            assert found, "no crop of the padded image"
            places += found
    # All 25 places, each about as often: 240 images, so 9.6 of each.
    counts = [places.count(place) for place in set(places)]
    assert len(counts) == (2 * pad + 1) ** 2
    assert max(counts) < 30


def crop_of(padded, top, left, mirrored):
    crop = padded[:, top : top + HEIGHT, left : left + WIDTH]
    return crop.flip(2) if mirrored else crop


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match="3 training images do not fill one batch of `batch_size`"):
        batches_of(split_of(3))


def test_cutout_greys_out_one_square_and_changes_nothing_else():
    split = split_of(40)
    plain = epoch_of(batches_of(split), 0)
    cut = epoch_of(batches_of(split, cutout_pixels=4), 0)
    assert cut[1] == plain[1]
    covered = cut[0] != plain[0]
    assert (cut[0][covered] == 0).all()
    whole = 0
    for pixels in covered.any(1):  # (H, W)
        rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
        height, width = (int(each[-1] - each[0]) + 1 for each in (rows, columns))
        assert pixels.sum() == height * width  # one full rectangle
        assert 2 <= height <= 4  # at a border part of it lies outside
        assert 2 <= width <= 4
        whole += (height, width) == (4, 4)
    assert whole > 0
