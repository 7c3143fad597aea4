"""The option of commands for ONNX files that gives the sizes of inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from lowrank.errors import UserError

input_option: Callable[[Any], Any] = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SIZES",
    help="Shape of an input for one sample, such as x=1,3,48,320. Needed where the file leaves "
    "sizes open.",
)


def shapes_of(inputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `--input` options. Raises UserError for another form than NAME=SIZES."""
    shapes = {}
    for text in inputs:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            name = ""
        if not name:
            raise UserError(
                f"--input {text}: expected a name and whole numbers, such as x=1,3,48,320."
            )
    return shapes
