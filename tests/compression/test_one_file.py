"""Measurements of one compressed file."""

from pathlib import Path

import pytest

from lowrank.compression.one_file import MeasuredFile, warnings_about
from lowrank.core.metric import AGREEMENT
from lowrank.core.plans import Expected


def measured(name, agreement, speedup):
    change = None
    if agreement is not None:
        change = Expected(100, 100.0, agreement, 10.0, of_labels=False, metric=AGREEMENT)
    return MeasuredFile(name, Path(f"{name}.onnx"), change, speedup)


@pytest.mark.parametrize(
    ("in_int8", "in_float", "expected"),
    [
        ((98.0, (2.0, 1.9, 2.1)), (98.5, (1.3, 1.2, 1.4)), []),
        # The intervals overlap.
        ((98.0, (1.2, 1.1, 1.3)), (98.5, (1.3, 1.2, 1.4)), []),
        ((98.0, "no such device"), (98.5, (1.3, 1.2, 1.4)), []),
        ((None, (2.0, 1.9, 2.1)), (98.5, (1.3, 1.2, 1.4)), []),
        (
            (98.0, (0.8, 0.75, 0.85)),
            (98.5, (1.3, 1.2, 1.4)),
            ["int8 is slower than float on this machine (0.80x and 1.30x the speed of the origin"],
        ),
        (
            (90.0, (2.0, 1.9, 2.1)),
            (98.5, (1.3, 1.2, 1.4)),
            ["int8 changes the outputs much more than float (agreement with the original 90.00 %"],
        ),
        (
            (90.0, (0.8, 0.75, 0.85)),
            (98.5, (1.3, 1.2, 1.4)),
            ["int8 is slower than float", "int8 changes the outputs much more than float"],
        ),
    ],
)
def test_a_worse_int8_file_is_a_warning_that_names_the_better_file(in_int8, in_float, expected):
    warnings = warnings_about(measured("small_int8", *in_int8), measured("small", *in_float))
    assert len(warnings) == len(expected)
    for warning, text in zip(warnings, expected, strict=True):
        assert warning.startswith(f"warning: {text}")
        assert warning.endswith("use small.onnx")
