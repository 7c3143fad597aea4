"""Networks from ONNX files: the file, its layers, and the network in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from lowrank.config.network_source import NetworkSource
from lowrank.core.layers import LayerTable
from lowrank.errors import UserError
from lowrank.onnx_networks.graph_layers import Site, find_sites, table_of
from lowrank.onnx_networks.graph_module import GraphModule
from lowrank.onnx_networks.model_file import input_shapes, input_types, layout_of, read_model
from lowrank.zoo.registry import ARRAY_TYPES, InputForm, NetworkSpec

_AXES_OF_IMAGES = 4


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file as a source of a network.

    Parameters
    ----------
    path
        The file.
    model
        Its content.
    shapes
        Shape of each input for one sample, by name.
    sites
        Its layers.
    layout
        Layout of its input of images; `nchw` for other inputs.
    forms
        Its inputs, if it takes no images.
    """

    path: str
    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    sites: tuple[Site, ...]
    layout: str
    forms: tuple[InputForm, ...] = ()

    @classmethod
    def read(cls, source: NetworkSource) -> OnnxFile:
        """Read the file of a network.

        Raises UserError if it cannot be used (see `read_model`), if it has no inputs or inputs of
        other types than arrays can have, if an input has no axis of samples, or if a size is
        neither in the file nor given.
        """
        path = source.onnx or ""
        file = Path(path)
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
        return _read(path, tuple((source.inputs or {}).items()), source.layout, stamp)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: channels, height, width; or of a sample of the first input."""
        shape = next(iter(self.shapes.values()))[1:]
        return (shape[-1], *shape[:-1]) if self.layout == "nhwc" else shape

    def table(self, name: str) -> LayerTable:
        """Return the layer table, with the shape of a sample."""
        return LayerTable(name, self.input_shape, table_of(self.sites, self.shapes, name).layers)


@functools.lru_cache(maxsize=1)
def _read(
    path: str,
    inputs: tuple[tuple[str, tuple[int, ...]], ...],
    layout: str | None,
    stamp: tuple[int, int],
) -> OnnxFile:
    """Read a file. `stamp`, its time and size, keeps the cache from returning an earlier file."""
    model = read_model(path)
    shapes = input_shapes(path, model, dict(inputs))
    forms = _forms(path, model, shapes)
    if forms and layout:
        raise UserError(
            f"{path}: `layout` is for images, but the network takes {', '.join(map(str, forms))}. "
            "Remove it."
        )
    sites = find_sites(model, shapes, path)
    chosen = "nchw" if forms else layout or layout_of(next(iter(shapes.values())))
    return OnnxFile(path, model, shapes, sites, chosen, forms)


def _forms(
    path: str, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[InputForm, ...]:
    """Return the inputs of a network that takes no images; none for one input of images.

    Raises UserError for inputs without an axis of samples or of an unusable type.
    """
    types = input_types(model)
    if not shapes:
        raise UserError(f"{path}: has no inputs, so there is nothing to compress it with.")
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        if len(shape) == _AXES_OF_IMAGES and types[name].startswith("float"):
            return ()
    for name, shape in shapes.items():
        if types[name] not in ARRAY_TYPES:
            raise UserError(
                f"{path}: its input '{name}' has the type {types[name]}; expected one of "
                f"{', '.join(ARRAY_TYPES)}. Export the network with an input of one of these types."
            )
        if not shape:
            raise UserError(
                f"{path}: its input '{name}' has no axes; expected samples along the first axis. "
                "Export the network with this value as a constant."
            )
    if len({shape[0] for shape in shapes.values()}) > 1:
        found = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items())
        raise UserError(
            f"{path}: its inputs have different numbers of samples along the first axis: {found}. "
            "Expected the same number for each. Export the network with batches as inputs."
        )
    return tuple(InputForm(name, shape[1:], types[name]) for name, shape in shapes.items())


def onnx_network(source: NetworkSource) -> tuple[NetworkSpec, GraphModule]:
    """Return the network of an ONNX file with the file's weights. Raises UserError as `read`."""
    file = OnnxFile.read(source)
    if file.forms:
        spec = NetworkSpec.of_forms(file.path, file.forms)
    else:
        channels = file.input_shape[0]
        spec = NetworkSpec(
            file.path,
            file.input_shape,
            0,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            layout="nhwc" if file.layout == "nhwc" else "nchw",
        )
    return spec, GraphModule(file.model, file.sites, file.shapes, file.layout, file.path)
