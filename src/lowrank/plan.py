"""The small documents that pass between steps: layers, schedules, plans. Nothing heavy here.

The Snakefile imports this module to know every round and layer before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Pair = tuple[int, int]


@dataclass(frozen=True)
class PlainLayer:
    """An ordinary convolution: what every factorization is a sequence of.

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
        """Weights and biases."""
        return math.prod(self.weight_shape) + self.bias * self.out_channels

    def output_map(self, input_map: Pair) -> Pair:
        """Height and width of the output, for an input of that height and width."""
        return tuple(  # type: ignore[return-value]
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                input_map, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )

    def macs(self, input_map: Pair) -> int:
        """Multiply-accumulates for one image whose map has that height and width."""
        return math.prod(self.weight_shape) * math.prod(self.output_map(input_map))


@dataclass(frozen=True)
class Layer(PlainLayer):
    """A layer of a network, as the layer table in `data/networks/` holds it.

    A linear layer is a 1 x 1 convolution on a 1 x 1 map. `not_factored` says why no factorization
    takes this layer; None for one that can be taken.
    """

    name: str = ""
    kind: Literal["conv", "linear", "transposed_conv"] = "conv"
    input_map: Pair = (1, 1)
    not_factored: str | None = None

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the layer as it is, for one image."""
        if self.kind == "transposed_conv":
            # The kernel is applied at each place of the input rather than of the output.
            return math.prod(self.weight_shape) * math.prod(self.input_map)
        return self.macs(self.input_map)


def sequence_parameters(sequence: Iterable[PlainLayer]) -> int:
    """Weights and biases of a sequence of plain layers."""
    return sum(layer.parameters for layer in sequence)


def sequence_macs(sequence: Iterable[PlainLayer], input_map: Pair) -> int:
    """Multiply-accumulates of a sequence of plain layers, for one image."""
    total = 0
    for layer in sequence:
        total += layer.macs(input_map)
        input_map = layer.output_map(input_map)
    return total


@dataclass(frozen=True)
class LayerTable:
    """A network as the graph sees it: its layers in forward order, no weights."""

    network: str
    input_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """The document that `lowrank inspect` writes."""
        return {
            "network": self.network,
            "input_shape": list(self.input_shape),
            "layers": [_listed(asdict(layer)) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LayerTable:
        """The inverse of `to_json`."""
        return cls(
            network=document["network"],
            input_shape=tuple(document["input_shape"]),
            layers=tuple(Layer(**_tupled(layer)) for layer in document["layers"]),
        )


@dataclass(frozen=True)
class PlannedLayer:
    """What a round does to one layer: the factorization and its ranks, or why it stays dense.

    `ranks` are those of one group, in the order of the factorization's `rank_names`; `chosen` are
    those that the rule gave before they were clamped and rounded, `notes` say what was changed.
    """

    name: str
    factorization: str
    ranks: tuple[int, ...]
    chosen: tuple[int, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    dense_because: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether the layer stays as it is."""
        return self.dense_because is not None


@dataclass(frozen=True)
class Plan:
    """The ranks of one round, as `select_ranks` writes them."""

    layers: tuple[PlannedLayer, ...]

    def __getitem__(self, name: str) -> PlannedLayer:
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """The document; pairs are (before, after)."""
        return {"layers": [_listed(asdict(layer)) for layer in self.layers]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        return cls(tuple(PlannedLayer(**_tupled(layer)) for layer in document["layers"]))


@dataclass(frozen=True)
class Factored:
    """A layer that was replaced: which factorization, at which ranks, by which plain layers."""

    factorization: str
    ranks: tuple[int, ...]
    relative_error: float
    sequence: tuple[PlainLayer, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The document that stands in the header of a factors file."""
        return _listed(asdict(self)) | {
            "sequence": [_listed(asdict(layer)) for layer in self.sequence]
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Factored:
        """The inverse of `to_json`."""
        plain = tuple(PlainLayer(**_tupled(layer)) for layer in document["sequence"])
        return cls(**(_tupled(document) | {"sequence": plain}))


def rounds_of(names: Sequence[str], *, kind: str, group: int = 1) -> list[list[str]]:
    """The layers that each round takes, in network order.

    Parameters
    ----------
    names
        The layers of a method, in network order.
    kind
        `one_shot`: one round with every layer (Kim et al. 2016). `iterative`: a round for every
        `group` layers, first to last (Astrid & Lee 2017).
    """
    if kind == "one_shot":
        return [list(names)]
    return [list(names[start : start + group]) for start in range(0, len(names), group)]


def _tupled(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }


def _listed(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in document.items()
    }


def assign_factorizations(table: LayerTable, factorize: Mapping[str, str | None]) -> dict[str, str]:
    """The factorization of each layer that a method takes, by name, in network order.

    `factorize` maps a kind (`first_conv`, `conv`, `pointwise_conv`, `linear`) to the name of a
    factorization, or to None where the kind is left dense. Layers that no factorization can take
    (`Layer.not_factored`) are left out.
    """
    assigned = {}
    first_conv = next((layer.name for layer in table.layers if layer.kind == "conv"), None)
    for layer in table.layers:
        if layer.kind == "linear":
            kind = "linear"
        elif layer.name == first_conv:
            kind = "first_conv"
        else:
            kind = "pointwise_conv" if layer.kernel == (1, 1) else "conv"
        if factorize.get(kind) and not layer.not_factored:
            assigned[layer.name] = factorize[kind]
    return assigned
