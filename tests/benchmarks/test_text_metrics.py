"""Metrics of text: what counts as read, and as found."""

import numpy as np
import pytest
import text_images
import text_metrics
from PIL import ImageFont


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_edit_distance(first, second, distance):
    assert text_metrics.edits(first, second) == distance
    assert text_metrics.edits(second, first) == distance


def test_repeated_characters_and_blanks_are_decoded():
    # Characters are numbered from 1: "a" twice with a blank between counts twice.
    answers = [3, 0, 1, 1, 0, 1, 2, 2, 3]
    probabilities = np.eye(4)[[answers]]
    assert text_metrics.decoded(probabilities, ["a", "b", " "]) == ["aab"]


def test_boxes_surround_connected_pixels():
    probabilities = np.zeros((1, 20, 30))
    probabilities[0, 2:7, 3:15] = 0.9
    probabilities[0, 10:16, 5:25] = 0.4
    probabilities[0, 18, 1:20] = 0.9  # too thin
    probabilities[0, 10:16, 27] = 0.2  # below the threshold
    boxes = text_metrics.boxes_of(probabilities)
    assert boxes.tolist() == [[3, 2, 15, 7], [5, 10, 25, 16]]


@pytest.fixture
def pages(monkeypatch):
    """Two pages with one line each, whose map is the page itself."""
    images = np.zeros((2, 1, 20, 30), np.float32)
    images[0, 0, 2:8, 2:20] = images[1, 0, 10:16, 4:28] = 1
    boxes = (np.array([[2.0, 2, 20, 8]]), np.array([[4.0, 10, 28, 16]]))
    made = text_images.Pages(images, boxes)
    monkeypatch.setattr(text_images, "pages", lambda count, seed: made)
    return made


def test_lines_on_pages_are_found_or_not(pages):
    def same(batch):
        return batch

    def half(batch):
        return np.where(np.arange(30) < 12, batch, 0)

    assert text_metrics.found_lines(same) == 100
    assert text_metrics.box_agreement(same, same) == 100
    assert text_metrics.map_error(same, same) == 0
    # One of two lines is found: precision 1, recall 1 / 2.
    first = [batch * (batch[:, :, 2:8].sum() > 0) for batch in pages.images[:, None]]
    only_first = dict(zip((image.tobytes() for image in pages.images[:, None]), first, strict=True))
    evaluate = lambda batch: np.concatenate(  # noqa: E731
        [only_first[image[None].tobytes()] for image in batch]
    )
    assert text_metrics.found_lines(evaluate) == pytest.approx(200 / 3)
    # A little more than half of the first box overlaps, less of the second one.
    assert text_metrics.box_agreement(half, same) == 50
    assert text_metrics.map_error(half, same) == pytest.approx(
        100 * (1 - (6 * 10 + 6 * 8) / (6 * 18 + 6 * 24)) ** 0.5
    )


def test_images_are_the_same_for_the_same_seed(monkeypatch):
    font = ImageFont.load_default(30)
    monkeypatch.setattr(text_images, "_font", lambda generator, size: font)
    for make in (text_images.lines, text_images.crops, text_images.pages):
        make = make.__wrapped__
        first, again, other = make(3, 0), make(3, 0), make(3, 1)
        assert np.array_equal(first.images, again.images)
        assert not np.array_equal(first.images, other.images)
        assert first.images.dtype == np.float32
        assert np.abs(first.images).max() <= 1
    lines = text_images.lines.__wrapped__(50, 0)
    assert len(set(lines.texts)) > 45
    assert max(map(len, lines.texts)) <= 18
    crops = text_images.crops.__wrapped__(10, 0)
    assert crops.turned.sum() == 5
