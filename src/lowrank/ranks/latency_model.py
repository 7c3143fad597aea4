"""What plain layers take on a device, from a grid of measured ones. NumPy alone.

A sequence of factors has more ranks than can be measured. But its layers are convolutions, and what
one of those takes follows from its numbers of channels once everything else is given; so a grid of
channels is measured for each geometry, and interpolated between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

import numpy as np

from lowrank.core.layers import Pair, PlainLayer

# Channels on each axis of a grid. Between them, multiples of the width of vector units.
_POINTS = 6
_MULTIPLE = 16


@dataclass(frozen=True)
class Geometry:
    """All of a plain layer but its numbers of channels, and the map that it works on.

    `groups` is 0 for a layer that has a group for each channel.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    input_map: Pair

    @classmethod
    def of(cls, layer: PlainLayer, input_map: Pair) -> Geometry:
        """That of a layer on a map (height, width)."""
        by_channel = layer.groups == layer.in_channels == layer.out_channels > 1
        groups = 0 if by_channel else layer.groups
        return cls(
            layer.kernel, layer.stride, layer.padding, layer.dilation, groups, tuple(input_map)
        )

    def layer(self, inputs: int, outputs: int) -> PlainLayer:
        """The layer of that geometry with those channels."""
        groups = self.groups or inputs
        fields = {name: getattr(self, name) for name in ("kernel", "stride", "padding", "dilation")}
        return PlainLayer(inputs, outputs, groups=groups, bias=True, **fields)


@dataclass(frozen=True)
class Grid:
    """Channels to be measured of one geometry: every combination, or pairs for `groups` 0."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def cells(self, geometry: Geometry) -> list[PlainLayer]:
        """The layers, row by row; of one group for each channel there is one row."""
        if not geometry.groups:
            return [geometry.layer(count, count) for count in self.inputs]
        return [geometry.layer(i, o) for i in self.inputs for o in self.outputs]


def grids_for(
    sequences: Iterable[tuple[Sequence[PlainLayer], Pair]],
) -> dict[Geometry, Grid]:
    """Grids that hold every layer of the sequences, each with the map that its first layer sees."""
    channels: dict[Geometry, tuple[set[int], set[int]]] = {}
    for sequence, input_map in sequences:
        for layer in sequence:
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
    """What plain layers take on a device, and all the rest of the network.

    Parameters
    ----------
    original_ms
        What the original network takes in one piece, in ms.
    rest_ms
        What a network takes for everything but convolutions and linear layers.
    grids
        For each geometry the channels that were measured, and ms: shape (inputs, outputs), or
        (inputs,) for one group for each channel.
    whole
        Of some compressed networks: ms by their layers, and in one piece. Layers behind one another
        do not take what they take each by itself: what one leaves in the caches the next finds.
    """

    original_ms: float
    rest_ms: float
    grids: Mapping[Geometry, tuple[Grid, np.ndarray]]
    whole: tuple[tuple[float, float], ...] = ()

    def milliseconds(self, sequence: Iterable[PlainLayer], input_map: Pair) -> float:
        """What a sequence takes behind a map (height, width), interpolated."""
        total = 0.0
        for layer in sequence:
            grid, measured = self.grids[Geometry.of(layer, input_map)]
            if measured.ndim == 2:
                measured = np.array(
                    [np.interp(layer.out_channels, grid.outputs, row) for row in measured]
                )
            total += float(np.interp(layer.in_channels, grid.inputs, measured))
            input_map = layer.output_map(input_map)
        return total

    def in_one_piece(self, by_layers: float) -> float:
        """What a network takes, in ms, whose layers and rest take `by_layers` together."""
        return self._between(by_layers, of=0)

    def by_layers(self, in_one_piece: float) -> float:
        """The inverse of `in_one_piece`."""
        return self._between(in_one_piece, of=1)

    def with_whole(self, whole: Iterable[tuple[float, float]]) -> Latencies:
        """With what some compressed networks take: ms by their layers, and in one piece."""
        return replace(self, whole=tuple(sorted(whole)))

    def _between(self, milliseconds: float, *, of: int) -> float:
        """From one column of `whole` to the other: lines between logarithms."""
        if not self.whole:
            return milliseconds
        # Chance must not let a network of slower layers look faster.
        points = np.maximum.accumulate(np.log(self.whole), axis=0)
        x, y = points[:, of], points[:, 1 - of]
        at = np.log(milliseconds)
        # Beyond the outermost ones in the same proportion.
        beyond = min(at - x[0], 0.0) + max(at - x[-1], 0.0)
        return float(np.exp(np.interp(at, x, y) + beyond))

    @classmethod
    def measured(
        cls,
        original_ms: float,
        rest_ms: float,
        grids: Mapping[Geometry, Grid],
        measure: Callable[[Sequence[tuple[PlainLayer, Pair]]], Sequence[float]],
    ) -> Latencies:
        """By a function that returns the ms of each of several layers on their maps."""
        layers = [
            (layer, geometry.input_map)
            for geometry, grid in grids.items()
            for layer in grid.cells(geometry)
        ]
        found = iter(measure(layers))
        return cls(
            original_ms,
            rest_ms,
            {
                geometry: (
                    grid,
                    _shaped([next(found) for _ in grid.cells(geometry)], geometry, grid),
                )
                for geometry, grid in grids.items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The document that `profile_layers` writes."""
        return {
            "original_ms": self.original_ms,
            "rest_ms": self.rest_ms,
            "whole": [{"by_layers_ms": b, "in_one_piece_ms": w} for b, w in self.whole],
            "grids": [
                {"geometry": asdict(geometry), **asdict(grid), "ms": measured.tolist()}
                for geometry, (grid, measured) in self.grids.items()
            ],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Latencies:
        """The inverse of `to_json`."""
        grids = {}
        for each in document["grids"]:
            fields = each["geometry"].items()
            geometry = Geometry(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields})
            grid = Grid(tuple(each["inputs"]), tuple(each["outputs"]))
            grids[geometry] = (grid, np.array(each["ms"]))
        whole = tuple((each["by_layers_ms"], each["in_one_piece_ms"]) for each in document["whole"])
        return cls(document["original_ms"], document["rest_ms"], grids, whole)


def _shaped(found: list[float], geometry: Geometry, grid: Grid) -> np.ndarray:
    if not geometry.groups:
        return np.array(found)
    return np.array(found).reshape(len(grid.inputs), len(grid.outputs))
