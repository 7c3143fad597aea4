"""What a model answers to real images, and whether two machines answer alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices.device import DeviceError, MeasureSettings
from lowrank.devices.runtime import open_session

# Float: sums in another order differ by 1e-6 of the outputs, products in bfloat16 by some 1e-3.
# The same bound holds between the exported file and PyTorch.
LARGEST_FLOAT_ERROR = 1e-3
# int8: a sum that lies between two steps may be rounded either way, and each layer passes that on.
# Correct kernels come to 0.002 to 0.005 of the outputs on VGG-16 and ResNet-20, and no image of 200
# changes its class. Saturation without VNNI comes to 0.24 on ResNet-20, 15 % of classes change.
LARGEST_INT8_ERROR = 0.05
LARGEST_INT8_CHANGED_PERCENT = 5.0


def answers(model: Path, images: Path, settings: MeasureSettings) -> list[list[float]]:
    """Run a model over the images of a .npy file, (N, C, H, W), float32; its outputs, (N, outputs).

    Raises DeviceError as `open_session` does, and for images that the model does not take.
    """
    session = open_session(model, settings)
    data = np.load(images)
    (given,) = session.get_inputs()
    batch = given.shape[0] if isinstance(given.shape[0], int) else settings.batch_size
    whole = len(data) - len(data) % batch
    if not whole or list(data.shape[1:]) != list(given.shape[1:]):
        raise DeviceError(
            f"{model}: it takes images of shape {given.shape}; {data.shape} were given to compare "
            "its answers."
        )
    found = [
        session.run(None, {given.name: data[start : start + batch]})[0]
        for start in range(0, whole, batch)
    ]
    return np.concatenate(found).reshape(whole, -1).tolist()


def expected_answers(model: Path, images: Path, settings: MeasureSettings) -> list[list[float]]:
    """What the file itself says: each node by its own float kernel, nothing fused.

    An int8 file is computed in float between its conversions, so that neither saturation nor a
    wrong integer kernel of this machine is in it.
    """
    return answers(model, images, dataclasses.replace(settings, optimization="none"))


def agreement(
    found: list[list[float]], expected: list[list[float]], *, in_int8: bool
) -> dict[str, Any]:
    """Compare a device's answers with those that are expected.

    Returns
    -------
    dict
        `images`; `relative_error`, the norm of the difference over that of what is expected;
        `changed_percent`, the images whose largest output is another; `warning`, or None where
        the difference is rounding.
    """
    got, wanted = np.array(found, np.float64), np.array(expected, np.float64)
    got, wanted = got[: len(wanted)], wanted[: len(got)]
    difference, norm = np.linalg.norm(got - wanted), np.linalg.norm(wanted)
    # NaN compares as false: what is not a number is an infinite error.
    error = float(difference / norm) if norm > 0 else float(difference > 0)
    error = error if np.isfinite(error) else 1e30
    changed = 100.0 * float((got.argmax(1) != wanted.argmax(1)).mean())
    limit = LARGEST_INT8_ERROR if in_int8 else LARGEST_FLOAT_ERROR
    most_changed = LARGEST_INT8_CHANGED_PERCENT if in_int8 else 0.0
    # In float a tie of two classes may fall either way: the error decides alone.
    wrong = error > limit or (in_int8 and changed > most_changed)
    warning = None
    if wrong:
        warning = (
            f"its outputs differ from what the file says by {error:.3g} of their norm, and "
            f"{changed:.1f} % of {len(got)} images get another class (rounding comes to at most "
            f"{limit:g} and {most_changed:g} %): ONNX Runtime computes it wrongly on this device. "
            "Its accuracy there is not the one stated. Try another version of onnxruntime"
            + (", or `quantize.reduce_range: true`" if in_int8 else "")
        )
    return {
        "images": len(got),
        "relative_error": error,
        "changed_percent": changed,
        "warning": warning,
    }
