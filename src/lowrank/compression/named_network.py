"""The network that a command names: an ONNX file, or a function that returns a PyTorch network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.config.network_source import NetworkSource
from lowrank.errors import UserError
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_networks.model_file import inputs_of, read_model
from lowrank.zoo.creation import create
from lowrank.zoo.registry import NetworkSpec

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# Name of the input of an exported network.
_INPUT = "images"

# Sizes of the inputs by name. The name of the only input may be empty.
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class BuiltNetwork:
    """A network that a function of the user returned.

    Parameters
    ----------
    module
        The network in PyTorch.
    spec
        Specification of its input.
    source
        How it was built.
    """

    module: nn.Module
    spec: NetworkSpec
    source: NetworkSource


@dataclass(frozen=True)
class NamedNetwork:
    """The network that a command names.

    Parameters
    ----------
    label
        What the user wrote: a path, or `package.module:function`.
    file
        ONNX file of the network: the user's own, or an export.
    shapes
        Shape of each input for one sample, as far as it is given.
    built
        The network in PyTorch; None for an ONNX file.
    """

    label: str
    file: Path
    shapes: Shapes
    built: BuiltNetwork | None = None


def open_network(model: str, shapes: Shapes, batches: Sequence[Any], folder: Path) -> NamedNetwork:
    """Find an ONNX file, or call a function, import it from the current folder and export it.

    Parameters
    ----------
    model
        Path of an ONNX file, or `package.module:function`.
    shapes
        Shape of each input for one sample, by name. The name of the only input may be empty.
    batches
        Samples. They say the shape of the input of a function's network if `shapes` does not.
    folder
        Empty folder for the exported file.

    Raises
    ------
    UserError
        If there is no such file; if the function is missing, fails or returns no network; if its
        network does not take images of that shape or cannot be exported; or if an input without a
        name is not the only one.
    """
    if Path(model).exists() or not _FUNCTION.fullmatch(model):
        if not Path(model).exists():
            raise UserError(
                f"{model}: no such file. Expected an ONNX file, or a function that returns a "
                "PyTorch network, as package.module:function."
            )
        return NamedNetwork(model, Path(model), _named(Path(model), shapes))
    source = NetworkSource(factory=model, input_shape=_image_shape(model, shapes, batches))
    spec, module = create(source)
    file = folder / f"{source.short_name}.onnx"
    export_onnx(module, spec, file)
    named = {_INPUT: (1, *spec.input_shape)}
    return NamedNetwork(model, file, named, BuiltNetwork(module, spec, source))


def _named(file: Path, shapes: Shapes) -> Shapes:
    """Return the shapes by the names of inputs. Raises UserError if a name is needed."""
    if "" not in shapes:
        return shapes
    names = [entry.name for entry in inputs_of(read_model(file))]
    if len(names) != 1 or len(shapes) != 1:
        raise UserError(
            f"--input: {file} has the inputs {', '.join(map(repr, names))}. Give each shape with a "
            f"name: --input {names[0]}=1,3,224,224."
        )
    return {names[0]: shapes[""]}


def _image_shape(model: str, shapes: Shapes, batches: Sequence[Any]) -> tuple[int, int, int]:
    """Return the shape of one image: channels, height, width."""
    if unknown := sorted(shapes.keys() - {"", _INPUT}):
        raise UserError(
            f"--input {unknown[0]}: a network in PyTorch has one input, the images. Leave out the "
            "name, such as --input 1,3,224,224, or export the network to ONNX."
        )
    if shapes:
        sizes = list(shapes.values())[-1]
    elif batches:
        first = batches[0]
        sizes = (next(iter(first.values())) if isinstance(first, Mapping) else first).shape
    else:
        raise UserError(
            f"{model}: the size of its images is not known. Give the shape of one sample, such as "
            "--input 1,3,224,224."
        )
    if len(sizes) != 4 or min(sizes) < 1:
        raise UserError(
            f"--input: found the shape {list(sizes)} for {model}; expected that of a batch of "
            "images, (samples, channels, height, width), such as 1,3,224,224."
        )
    _, channels, height, width = sizes
    return channels, height, width
