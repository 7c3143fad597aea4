"""The option of commands for one network that gives the sizes of inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from lowrank.errors import UserError

input_option: Callable[[Any], Any] = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SIZES",
    help="Shape of an input for one sample, such as x=1,3,48,320; a single input needs no name. "
    "Needed for a PyTorch function, and where an ONNX file leaves sizes open.",
)


def shapes_of(inputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `--input` options; an input without a name has an empty one.

    Raises UserError for another form than [NAME=]SIZES.
    """
    shapes = {}
    for text in inputs:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise UserError(
                f"--input {text}: expected whole numbers, such as 1,3,48,320 or x=1,3,48,320."
            ) from error
    return shapes
