"""Metrics of networks that read, find and turn text, on rendered images.

A metric takes a function that evaluates the network, from a batch of inputs (N, 3, H, W) to its
output, and returns a number. The images are those of `text_images`, with the seed `TEST`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import text_images
from scipy import ndimage

Evaluate = Callable[[np.ndarray], Any]

# Other texts, fonts and noise than those of the images for calibration, which have the seed 0.
TEST = 1
LINES, CROPS, PAGES = 600, 600, 24

# The recognition network, whose metadata hold the characters.
RECOGNITION = (
    text_images.ROOT / "build/onnx_files/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
)

# Threshold of the probability that a pixel belongs to a line, as in PaddleOCR (DB, Liao 2020).
_THRESHOLD = 0.3
# Boxes of fewer pixels along a side are no lines, as in PaddleOCR.
_SMALLEST_SIDE = 3
# Overlap, intersection over union, from which two boxes show the same line.
_SAME_BOX = 0.5
_BATCH = 4


def exact_match(evaluate: Evaluate) -> float:
    """Return the share of lines that are read without any error, in percent."""
    read, texts = _read(evaluate)
    return 100.0 * float(np.mean([a == b for a, b in zip(read, texts, strict=True)]))


def character_errors(evaluate: Evaluate) -> float:
    """Return the number of wrong, missing and additional characters, in percent of all."""
    read, texts = _read(evaluate)
    errors = sum(edits(a, b) for a, b in zip(read, texts, strict=True))
    return 100.0 * errors / sum(map(len, texts))


def orientation(evaluate: Evaluate) -> float:
    """Return the share of lines whose orientation is recognized, in percent."""
    crops = text_images.crops(CROPS, TEST)
    answers = np.concatenate([output.argmax(1) for output in _outputs(evaluate, crops.images)])
    return 100.0 * float(np.mean(answers == crops.turned))


def found_lines(evaluate: Evaluate) -> float:
    """Return the F1 score of lines that are found on pages, in percent.

    A network marks the core of a line, so a box found counts as that line if the middle of each is
    inside the other.
    """
    pages = text_images.pages(PAGES, TEST)
    found = [boxes for maps in _outputs(evaluate, pages.images) for boxes in map(boxes_of, maps)]
    matches = sum(_same_middles(*pair) for pair in zip(found, pages.boxes, strict=True))
    return 200.0 * matches / (sum(map(len, found)) + sum(map(len, pages.boxes)))


def box_agreement(evaluate: Evaluate, original: Evaluate) -> float:
    """Return the F1 score of the boxes against those of the original network, in percent.

    Two boxes agree if their intersection over union is at least 0.5.
    """
    images = text_images.pages(PAGES, TEST).images
    now, before = (
        [boxes for maps in _outputs(network, images) for boxes in map(boxes_of, maps)]
        for network in (evaluate, original)
    )
    matches = sum(_overlapping(*pair) for pair in zip(now, before, strict=True))
    return 200.0 * matches / max(sum(map(len, now)) + sum(map(len, before)), 1)


def map_error(evaluate: Evaluate, original: Evaluate) -> float:
    """Return the error of the probability maps, relative to those of the original, in percent."""
    images = text_images.pages(PAGES, TEST).images
    difference = total = 0.0
    for now, before in zip(_outputs(evaluate, images), _outputs(original, images), strict=True):
        difference += float(np.square(now - before).sum())
        total += float(np.square(before).sum())
    return 100.0 * (difference / total) ** 0.5


def same_answers(evaluate: Evaluate, original: Evaluate) -> float:
    """Return the share of lines whose orientation is the same as by the original, in percent."""
    images = text_images.crops(CROPS, TEST).images
    pairs = zip(_outputs(evaluate, images), _outputs(original, images), strict=True)
    return 100.0 * float(np.mean(np.concatenate([a.argmax(1) == b.argmax(1) for a, b in pairs])))


def same_texts(evaluate: Evaluate, original: Evaluate) -> float:
    """Return the share of lines that are read as by the original, in percent."""
    (now, _), (before, _) = _read(evaluate), _read(original)
    return 100.0 * float(np.mean([a == b for a, b in zip(now, before, strict=True)]))


def decoded(probabilities: np.ndarray, characters: Sequence[str]) -> list[str]:
    """Return the most probable texts without a search (CTC, Graves et al. 2006).

    Of equal neighbors one is kept, then blanks are removed. Spaces at both ends are removed, too,
    because the margin of an image can look like one. `probabilities` has the shape (N, positions,
    classes); class 0 is the blank, and class i the i-th character.
    """
    texts = []
    for answers in probabilities.argmax(-1):
        kept = answers[np.diff(answers, prepend=0) != 0]
        texts.append("".join(characters[answer - 1] for answer in kept if answer).strip())
    return texts


def characters_of(path: Path) -> tuple[str, ...]:
    """Return the characters that a recognition network knows, with the space at the end."""
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    # Not `splitlines`, which also divides at characters such as U+2028.
    return (*metadata["character"].split("\n"), " ")


def edits(first: str, second: str) -> int:
    """Return the edit distance of two texts (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for column, other in enumerate(second, 1):
            replaced = diagonal + (letter != other)
            diagonal = row[column]
            row[column] = min(replaced, diagonal + 1, row[column - 1] + 1)
    return row[-1]


def boxes_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the boxes of a map (1, H, W), (boxes, 4): left, top, right, bottom in pixels.

    A box surrounds pixels that are connected and above the threshold, as in the postprocessing of
    DB (Liao et al. 2020), without the enlargement.
    """
    regions, _ = ndimage.label(probabilities[0] > _THRESHOLD)
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in ndimage.find_objects(regions)
        if min(rows.stop - rows.start, columns.stop - columns.start) >= _SMALLEST_SIDE
    ]
    return np.array(boxes, float).reshape(-1, 4)


@cache
def _characters() -> tuple[str, ...]:
    return characters_of(RECOGNITION)


def _read(evaluate: Evaluate) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts that a network reads, and the true ones."""
    lines = text_images.lines(LINES, TEST)
    outputs = _outputs(evaluate, lines.images)
    return [text for output in outputs for text in decoded(output, _characters())], lines.texts


def _outputs(evaluate: Evaluate, images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _BATCH):
        outputs = evaluate(images[start : start + _BATCH])
        yield next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes, (len(first), len(second))."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    union: np.ndarray = areas[0][:, None] + areas[1][None] - shared
    return shared / union


def _overlapping(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of boxes that agree. With an overlap above one half, each has one match."""
    return int((_overlaps(first, second) > _SAME_BOX).sum()) if len(first) and len(second) else 0


def _same_middles(found: np.ndarray, lines: np.ndarray) -> int:
    if not len(found) or not len(lines):
        return 0
    inside = _middle_inside(found, lines) & _middle_inside(lines, found).T
    return int(inside.any(0).sum())


def _middle_inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    middles = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    inside: np.ndarray = ((middles >= others[:, :2]) & (middles <= others[:, 2:])).all(-1)
    return inside
