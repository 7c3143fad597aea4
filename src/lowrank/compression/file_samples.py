"""Samples of the input of an ONNX file, from a folder of images or a file of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.data.samples import arrays_in, images_in
from lowrank.errors import UserError
from lowrank.onnx_networks.model_file import input_shapes, layout_of, read_model
from lowrank.zoo.registry import NetworkSpec

# Samples of one batch.
_BATCH = 32


@dataclass(frozen=True)
class Preprocessing:
    """How images become the input of a network, as the options of `lowrank compress` say.

    Parameters
    ----------
    mean, std
        Values for each channel, for pixels from 0 to 1, as texts: `0.5,0.5,0.5`.
    bgr
        Whether the network takes blue, green, red.
    resize
        Shorter side of an image before its center is cropped.
    """

    mean: str | None = None
    std: str | None = None
    bgr: bool = False
    resize: int | None = None

    def spec(self, name: str, input_shape: tuple[int, ...], layout: str) -> NetworkSpec:
        """Return the specification of the input. Raises UserError for a wrong number of values."""
        channels = input_shape[0]
        return NetworkSpec(
            name,
            input_shape,
            0,
            mean=_numbers("--mean", self.mean, channels, 0.0),
            std=_numbers("--std", self.std, channels, 1.0),
            channel_order="bgr" if self.bgr else "rgb",
            resize=self.resize,
            layout="nhwc" if layout == "nhwc" else "nchw",
        )


def image_batches(
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    count: int,
    preprocessing: Preprocessing,
) -> tuple[list[np.ndarray], NetworkSpec]:
    """Return images of a folder in batches, as the network expects them, and their specification.

    Raises UserError if the input is no image, or an image cannot be read.
    """
    complete = input_shapes(model, read_model(model), shapes)
    (shape, *others) = complete.values()
    layout = layout_of(shape)
    channels = shape[3 if layout == "nhwc" else 1] if len(shape) == 4 else 0
    if others or channels not in (1, 3):
        raise UserError(
            f"--images: {model} does not take one image, but inputs of the shapes "
            f"{ {name: list(sizes) for name, sizes in complete.items()} }. Give --samples."
        )
    height, width = shape[1:3] if layout == "nhwc" else shape[2:]
    spec = preprocessing.spec(str(model), (channels, height, width), layout)
    stack = images_in(folder, spec, count, "--images")
    if layout == "nhwc":
        stack = np.ascontiguousarray(stack.transpose(0, 2, 3, 1))
    return [stack[start : start + _BATCH] for start in range(0, len(stack), _BATCH)], spec


def sample_batches(path: Path, count: int) -> list[Any]:
    """Return the arrays of a file in batches. Raises UserError if they cannot be read."""
    arrays = {name: array[:count] for name, array in arrays_in(path, "--samples").items()}
    total = len(next(iter(arrays.values())))
    batches = [
        {name: array[start : start + _BATCH] for name, array in arrays.items()}
        for start in range(0, total, _BATCH)
    ]
    # An .npy file holds a single array, for a network with one input.
    return [batch.get("", batch) for batch in batches]


def _numbers(option: str, text: str | None, channels: int, default: float) -> tuple[float, ...]:
    if text is None:
        return (default,) * channels
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) != channels or (option == "--std" and not all(value > 0 for value in values)):
        kind = "positive numbers" if option == "--std" else "numbers"
        raise UserError(f"{option} {text}: expected {channels} {kind}, such as 0.5,0.5,0.5.")
    return values
