"""Hold test images out of training images, if a dataset has no test images of its own."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank.errors import UserError

# Changing one of these changes the test images, and therefore every result.
TEST_IMAGES = 5_000
IMAGES_PER_TEST_IMAGE = 5
TEST_SEED = 0

# One image each for training, validation and tests.
_FEWEST = 3


def rows_held_out(labels: ArrayLike, place: str) -> NDArray[np.int64]:
    """Return the sorted rows of the test images. The same labels give the same rows.

    A fifth of the images of each class are drawn at random, rounded down, but at least one image
    of each class. A smaller share is drawn if a fifth are more than 5,000 images.

    Parameters
    ----------
    labels
        Class of each image, (N,). Without labels, all images have the same class.
    place
        Parameter that messages name.

    Raises
    ------
    UserError
        If there are fewer than three images, or a class has a single image.
    """
    labels = np.asarray(labels)
    if len(labels) < _FEWEST:
        raise UserError(
            f"{place}: has {len(labels)} images, but at least {_FEWEST} are needed: one each for "
            "training, validation and tests. Add images; some hundred are a good number."
        )
    classes, sizes = np.unique(labels, return_counts=True)
    if single := np.count_nonzero(sizes < 2):
        raise UserError(
            f"{place}: {single} of {len(classes)} classes have a single image, which cannot be "
            "both a training and a test image. Add images, or set `validation` to a folder of test "
            "images."
        )
    counts = np.minimum(sizes // IMAGES_PER_TEST_IMAGE, sizes * TEST_IMAGES // len(labels))
    generator = np.random.default_rng(TEST_SEED)
    rows = [
        generator.permutation(np.flatnonzero(labels == label))[: max(1, count)]
        for label, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(rows))
