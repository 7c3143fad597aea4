"""Latencies of plain layers on a device, interpolated from a grid of measurements. NumPy only.

A sequence of factors has more choices of ranks than can be measured. But its layers are
convolutions, whose latency depends only on the numbers of channels if everything else is fixed. So
each geometry is measured on a grid of channels, with interpolation between the grid points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

import numpy as np

from lowrank.core.layers import Pair, PlainLayer

# Number of grid points on each axis. Inner points are multiples of the width of vector units.
_POINTS = 6
_MULTIPLE = 16


@dataclass(frozen=True)
class Geometry:
    """Everything about a plain layer except its numbers of channels, and the map that it runs on.

    `groups` is 0 for a layer with one group for each channel.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    input_map: Pair

    @classmethod
    def of(cls, layer: PlainLayer, input_map: Pair) -> Geometry:
        """Return the geometry of a layer on a map (height, width)."""
        by_channel = layer.groups == layer.in_channels == layer.out_channels > 1
        groups = 0 if by_channel else layer.groups
        height, width = input_map
        return cls(
            layer.kernel, layer.stride, layer.padding, layer.dilation, groups, (height, width)
        )

    def layer(self, inputs: int, outputs: int) -> PlainLayer:
        """Return the layer with this geometry and these numbers of channels."""
        groups = self.groups or inputs
        fields = {name: getattr(self, name) for name in ("kernel", "stride", "padding", "dilation")}
        return PlainLayer(inputs, outputs, groups=groups, bias=True, **fields)


@dataclass(frozen=True)
class Grid:
    """Channels to measure for one geometry: all combinations, or equal pairs if `groups` is 0."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def cells(self, geometry: Geometry) -> list[PlainLayer]:
        """Return the layers, row by row; there is one row if each channel has its own group."""
        if not geometry.groups:
            return [geometry.layer(count, count) for count in self.inputs]
        return [
            geometry.layer(inputs, outputs) for inputs in self.inputs for outputs in self.outputs
        ]


def grids_for(
    sequences: Iterable[tuple[Sequence[PlainLayer], Pair]],
) -> dict[Geometry, Grid]:
    """Return grids that cover every layer of the sequences.

    Each sequence comes with the map that its first layer sees.
    """
    channels: dict[Geometry, tuple[set[int], set[int]]] = {}
    for sequence, input_map in sequences:
        for layer in sequence:
            if not layer.is_exported:
                continue  # Not in the exported file.
            inputs, outputs = channels.setdefault(Geometry.of(layer, input_map), (set(), set()))
            inputs.add(layer.in_channels)
            outputs.add(layer.out_channels)
            input_map = layer.output_map(input_map)
    return {
        geometry: Grid(_axis(inputs, geometry.groups), _axis(outputs, geometry.groups))
        for geometry, (inputs, outputs) in channels.items()
    }


def _axis(used: set[int], groups: int) -> tuple[int, ...]:
    low, high = min(used), max(used)
    multiple = lcm(_MULTIPLE, groups or 1)
    between = np.geomspace(low, high, _POINTS) / multiple
    points = {int(point) * multiple for point in between.round()}
    return tuple(sorted({low, high} | {point for point in points if low < point < high}))


@dataclass(frozen=True)
class Latencies:
    """Latencies of plain layers on a device, and of the rest of the network.

    Parameters
    ----------
    original_ms
        Latency of the original network in one piece, in ms.
    rest_ms
        Latency of everything except convolutions and linear layers, in ms.
    grids
        Measured channels and latencies in ms for each geometry. The latencies have shape (inputs,
        outputs), or (inputs,) if each channel has its own group.
    whole
        For some compressed networks: the sum of the latencies of layers and rest, and the latency
        in one piece, in ms. The two differ because one layer leaves data in the caches for the
        next one.
    """

    original_ms: float
    rest_ms: float
    grids: Mapping[Geometry, tuple[Grid, np.ndarray]]
    whole: tuple[tuple[float, float], ...] = ()

    def milliseconds(self, sequence: Iterable[PlainLayer], input_map: Pair) -> float:
        """Return the interpolated latency of a sequence on an input map (height, width), in ms."""
        total = 0.0
        for layer in sequence:
            if not layer.is_exported:
                continue  # Not in the exported file.
            grid, measured = self.grids[Geometry.of(layer, input_map)]
            if measured.ndim == 2:
                measured = np.array(
                    [np.interp(layer.out_channels, grid.outputs, row) for row in measured]
                )
            total += float(np.interp(layer.in_channels, grid.inputs, measured))
            input_map = layer.output_map(input_map)
        return total

    def in_one_piece(self, by_layers: float) -> float:
        """Convert the sum over layers and rest to the latency in one piece, both in ms."""
        return self._between(by_layers, column=0)

    def by_layers(self, in_one_piece: float) -> float:
        """Convert the latency in one piece to the sum over layers and rest, both in ms."""
        return self._between(in_one_piece, column=1)

    def with_whole(self, whole: Iterable[tuple[float, float]]) -> Latencies:
        """Return the latencies, calibrated with measurements of some compressed networks.

        Each pair is the sum over layers and rest, and the latency in one piece, in ms.
        """
        return replace(self, whole=tuple(sorted(whole)))

    def _between(self, milliseconds: float, *, column: int) -> float:
        """Convert from one column of `whole` to the other by interpolating logarithms linearly."""
        if not self.whole:
            return milliseconds
        # Measurement noise must not make a network with slower layers look faster.
        points = np.maximum.accumulate(np.log(self.whole), axis=0)
        x, y = points[:, column], points[:, 1 - column]
        log_value = np.log(milliseconds)
        # Outside the measured range, the ratio stays the same.
        beyond = min(log_value - x[0], 0.0) + max(log_value - x[-1], 0.0)
        return float(np.exp(np.interp(log_value, x, y) + beyond))

    @classmethod
    def measured(
        cls,
        original_ms: float,
        rest_ms: float,
        grids: Mapping[Geometry, Grid],
        measure: Callable[[Sequence[tuple[PlainLayer, Pair]]], Sequence[float]],
    ) -> Latencies:
        """Measure the grids.

        `measure` returns the latency in ms of each of several layers on their maps.
        """
        layers = [
            (layer, geometry.input_map)
            for geometry, grid in grids.items()
            for layer in grid.cells(geometry)
        ]
        times = iter(measure(layers))
        return cls(
            original_ms,
            rest_ms,
            {
                geometry: (
                    grid,
                    _shaped([next(times) for _ in grid.cells(geometry)], geometry, grid),
                )
                for geometry, grid in grids.items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document that `profile_layers` writes."""
        return {
            "original_ms": self.original_ms,
            "rest_ms": self.rest_ms,
            "whole": [
                {"by_layers_ms": by_layers, "in_one_piece_ms": in_one_piece}
                for by_layers, in_one_piece in self.whole
            ],
            "grids": [
                {"geometry": asdict(geometry), **asdict(grid), "ms": measured.tolist()}
                for geometry, (grid, measured) in self.grids.items()
            ],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Latencies:
        """Read the document that `to_json` returns."""
        grids = {}
        for entry in document["grids"]:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in entry["geometry"].items()
            }
            geometry = Geometry(**fields)
            grid = Grid(tuple(entry["inputs"]), tuple(entry["outputs"]))
            grids[geometry] = (grid, np.array(entry["ms"]))
        whole = tuple(
            (entry["by_layers_ms"], entry["in_one_piece_ms"]) for entry in document["whole"]
        )
        return cls(document["original_ms"], document["rest_ms"], grids, whole)


def _shaped(times: list[float], geometry: Geometry, grid: Grid) -> np.ndarray:
    if not geometry.groups:
        return np.array(times)
    return np.array(times).reshape(len(grid.inputs), len(grid.outputs))
