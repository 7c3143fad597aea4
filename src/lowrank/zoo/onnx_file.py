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
from lowrank.onnx_networks.model_file import input_shapes, layout_of, read_model
from lowrank.zoo.registry import NetworkSpec


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
        Shape of its input for one sample, by name.
    sites
        Its layers.
    layout
        Layout of its input.
    """

    path: str
    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    sites: tuple[Site, ...]
    layout: str

    @classmethod
    def read(cls, source: NetworkSource) -> OnnxFile:
        """Read the file of a network.

        Raises UserError if it cannot be used (see `read_model`), if it has not one input of images,
        or if a size of the input is neither in the file nor given.
        """
        path = source.onnx or ""
        file = Path(path)
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
        return _read(path, tuple((source.inputs or {}).items()), source.layout, stamp)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        (shape,) = self.shapes.values()
        first, second, third = shape[1:]
        return (third, first, second) if self.layout == "nhwc" else (first, second, third)

    def table(self, name: str) -> LayerTable:
        """Return the layer table, with the shape of one image."""
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
    if len(shapes) != 1 or any(len(shape) != 4 for shape in shapes.values()):
        found = ", ".join(f"'{name}' of shape {list(shape)}" for name, shape in shapes.items())
        raise UserError(
            f"{path}: its inputs are {found}; networks in the pipeline have one input, a batch of "
            "images with four axes. `lowrank compress` takes others."
        )
    (shape,) = shapes.values()
    sites = find_sites(model, shapes, path)
    return OnnxFile(path, model, shapes, sites, layout or layout_of(shape))


def onnx_network(source: NetworkSource) -> tuple[NetworkSpec, GraphModule]:
    """Return the network of an ONNX file with the file's weights. Raises UserError as `read`."""
    file = OnnxFile.read(source)
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
