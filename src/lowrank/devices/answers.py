"""Compute a model's outputs for real images, and compare the outputs of two machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import load_model

# In float, a different order of summation changes the outputs by about 1e-6 of their norm, and
# products in bfloat16 by about 1e-3. The exported file must agree with PyTorch to the same bound.
LARGEST_FLOAT_ERROR = 1e-3
# In int8, a sum between two quantization steps may be rounded either way, and each layer passes the
# difference on. On VGG-16 and ResNet-20, correct kernels differ by 0.002 to 0.005 of the norm.
# Saturation without VNNI differs by 0.24 on ResNet-20, where 15 % of the images change their class.
LARGEST_INT8_ERROR = 0.05
# A network that amplifies rounding differs more, but its outputs are as far from those in float as
# the reference is. A text recognition network differs by 0.12 of the norm from the reference; both
# differ by 0.20 from float and read the same text in 98 % of the lines.
LARGEST_INT8_GROWTH = 1.5


def answers(model: Path, images: Path, settings: MeasureSettings) -> list[list[float]]:
    """Run a model on the images of a .npy file and return its outputs, (N, outputs).

    Several outputs are joined for each image; outputs of whole numbers are left out. The images are
    float32, (N, C, H, W). Other inputs are an array (N, ...), or an .npz file with an array for
    each input, by its name. Samples that do not fill a complete batch are left out.
    Raises DeviceError like `load_model`, and if the samples do not fit the model.
    """
    loaded_model = load_model(model, settings)
    shapes = {value.name: value.shape for value in loaded_model.inputs}
    loaded = np.load(images)
    is_single = isinstance(loaded, np.ndarray)
    data = {next(iter(shapes)): loaded} if is_single else dict(loaded)
    fixed = [size for shape in shapes.values() for size in shape[:1] if isinstance(size, int)]
    batch = fixed[0] if fixed else settings.batch_size
    samples = min(len(array) for array in data.values())
    count = samples - samples % batch
    found = {name: array.shape for name, array in data.items()}
    fits = data.keys() == shapes.keys() and all(
        list(array.shape[1:]) == list(shapes[name][1:]) for name, array in data.items()
    )
    if not count or not fits:
        raise DeviceError(
            f"{model}: the model takes inputs of the shapes {shapes}, but the samples for the "
            f"comparison of its outputs ({images}) have the shapes {found}. Prepare samples of "
            "those shapes."
        )
    outputs = []
    for start in range(0, count, batch):
        feed = {name: array[start : start + batch] for name, array in data.items()}
        values = loaded_model.run(feed)
        floats = [
            value.reshape(batch, -1)
            for value in values
            if value.dtype.kind == "f" and value.shape[:1] == (batch,)
        ]
        outputs.append(np.concatenate(floats, axis=1))
    joined: list[list[float]] = np.concatenate(outputs).tolist()
    return joined


def expected_answers(model: Path, images: Path, settings: MeasureSettings) -> list[list[float]]:
    """Return the reference outputs of a model file: of ONNX Runtime, without graph optimization.

    Every node runs in its own float kernel and nothing is fused. An int8 model is computed in float
    between its conversions. So neither saturation nor a wrong integer kernel of this machine can
    affect the result. Parameters, return value and DeviceError are as in `answers`.
    """
    return answers(model, images, dataclasses.replace(settings, optimization="none"))


def agreement(
    outputs: list[list[float]],
    expected: list[list[float]],
    in_float: list[list[float]] | None = None,
    *,
    are_classes: bool = False,
    runtime: str = "ONNX Runtime",
) -> dict[str, Any]:
    """Compare a device's outputs with the expected outputs.

    A network in int8 is wrong on a device if its outputs there are farther from the outputs in
    float than int8 explains.

    Parameters
    ----------
    outputs, expected : list of list of float, (images, outputs)
        The outputs of the device, and the reference outputs.
    in_float : list of list of float, (images, outputs), optional
        For a model in int8: the reference outputs of the same network in float.
    are_classes : bool
        Whether the outputs are the scores of classes, one for each class.
    runtime : str
        Name of the runtime of the device, for the warning.

    Returns
    -------
    dict
        `images`, the number of compared images; `relative_error`, the norm of the difference
        divided by the norm of the expected outputs; `changed_percent`, the share of images whose
        class changed, None for other outputs; `warning`, a text for the user, or None if the
        difference is only rounding.
    """
    count = min(map(len, (outputs, expected, in_float or expected)))
    actual, reference = (np.array(rows[:count], np.float64) for rows in (outputs, expected))
    error = _relative_error(actual, reference)
    limit = LARGEST_FLOAT_ERROR if in_float is None else LARGEST_INT8_ERROR
    is_wrong = error > limit
    if is_wrong and in_float is not None:
        exact = np.array(in_float[:count], np.float64)
        by_int8 = _relative_error(reference, exact)
        is_wrong = _relative_error(actual, exact) > LARGEST_INT8_GROWTH * by_int8
    changed = None
    if are_classes:
        changed = 100.0 * float((actual.argmax(1) != reference.argmax(1)).mean())
    return {
        "images": count,
        "relative_error": error,
        "changed_percent": changed,
        "warning": _warning(error, limit, changed, count, in_float, runtime) if is_wrong else None,
    }


def _relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """Return the norm of the difference, divided by the norm of the reference."""
    difference, norm = np.linalg.norm(actual - reference), np.linalg.norm(reference)
    error = float(difference / norm) if norm > 0 else float(difference > 0)
    # Comparisons with NaN are false, so an error that is not finite becomes a very large one.
    return error if np.isfinite(error) else 1e30


def _warning(
    error: float,
    limit: float,
    changed: float | None,
    count: int,
    in_float: object,
    runtime: str,
) -> str:
    classes = (
        "" if changed is None else f", and {changed:.1f} % of {count} images get another class"
    )
    return (
        f"its outputs differ from the reference outputs of the file by {error:.3g} of their "
        f"norm{classes} (rounding causes at most {limit:g}): {runtime} computes this model "
        "wrongly on this device. Its accuracy there is not the stated accuracy. Try another "
        f"version of {runtime}" + ("" if in_float is None else ", or `quantize.reduce_range: true`")
    )
