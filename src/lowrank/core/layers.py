"""Layers of a network and its layer table: shapes, parameters and MACs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lowrank.errors import UserError

Pair = tuple[int, int]

# Name for everything that belongs to no layer, such as pooling and changes of memory layout.
REST = "rest"


@dataclass(frozen=True)
class PlainLayer:
    """An ordinary convolution, the building block of every factorization.

    The kernel has shape (out_channels, in_channels / groups, *kernel).
    """

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel: (T, S / groups, D_h, D_w)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return math.prod(self.weight_shape) + self.bias * self.out_channels

    def output_map(self, input_map: Pair) -> Pair:
        """Return the (height, width) of the output for an input of (height, width) `input_map`."""
        return tuple(  # type: ignore[return-value]
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                input_map, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )

    def macs(self, input_map: Pair) -> int:
        """Return the multiply-accumulates for one image; `input_map` is (height, width)."""
        return math.prod(self.weight_shape) * math.prod(self.output_map(input_map))


@dataclass(frozen=True)
class Layer(PlainLayer):
    """A layer of a network, as stored in the layer table in `data/networks/`.

    A linear layer is a 1 x 1 convolution on a 1 x 1 map. A linear layer behind a flattened C x H x
    W map is a convolution from C channels whose kernel covers the whole map (Kim et al. 2016,
    section 3.1). `not_factored` is the reason why no factorization can replace this layer, or None.
    """

    name: str = ""
    kind: Literal["conv", "linear", "transposed_conv"] = "conv"
    input_map: Pair = (1, 1)
    not_factored: str | None = None

    def macs(self, input_map: Pair) -> int:
        """Return the multiply-accumulates for one image; `input_map` is (height, width)."""
        if self.kind == "transposed_conv":
            # The kernel is applied at each position of the input, not of the output.
            return math.prod(self.weight_shape) * math.prod(input_map)
        return super().macs(input_map)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the unfactored layer for one image."""
        return self.macs(self.input_map)


def sequence_parameters(sequence: Iterable[PlainLayer]) -> int:
    """Return the number of weights and biases of a sequence of plain layers."""
    return sum(layer.parameters for layer in sequence)


def sequence_macs(sequence: Iterable[PlainLayer], input_map: Pair) -> int:
    """Return the multiply-accumulates of a sequence of plain layers for one image."""
    total = 0
    for layer in sequence:
        total += layer.macs(input_map)
        input_map = layer.output_map(input_map)
    return total


@dataclass(frozen=True)
class LayerTable:
    """The layers of a network in forward order, without weights; this is what the graph reads.

    `input_shape` is the shape of its first input for one sample, without the batch axis.
    """

    network: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def with_obstacles(self, reasons: Mapping[str, str]) -> LayerTable:
        """Return the table with more layers excluded from factorization.

        `reasons` maps the name of each such layer to the reason. An existing reason is kept.
        """
        return replace(
            self,
            layers=tuple(
                replace(layer, not_factored=layer.not_factored or reasons.get(layer.name))
                for layer in self.layers
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document that `lowrank inspect` writes."""
        return {
            "network": self.network,
            "input_shape": list(self.input_shape),
            "layers": [lists_from(asdict(layer)) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LayerTable:
        """Read the document that `to_json` returns. Raises UserError for a damaged one."""
        try:
            return cls(
                network=document["network"],
                input_shape=tuple(document["input_shape"]),
                layers=tuple(Layer(**tuples_from(layer)) for layer in document["layers"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "a layer table (data/networks/) is damaged, or was written by an earlier version "
                f"of lowrank ({type(error).__name__}: {error}). Delete it and run the same command "
                "again."
            ) from error


def tuples_from(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a JSON document whose list values are tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }


def lists_from(document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a document whose tuple values are lists, as JSON needs them."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in document.items()
    }
