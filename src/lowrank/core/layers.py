"""Layers of a network and its layer table: shapes, parameters and MACs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lowrank.errors import UserError

Pair = tuple[int, int]

# Fields that documents leave out at their defaults.
_RARELY_SET = ("selects", "constant", "fed_by", "is_added")

# Name for everything that belongs to no layer, such as pooling and changes of memory layout.
REST = "rest"


@dataclass(frozen=True)
class PlainLayer:
    """An ordinary convolution, the building block of every factorization.

    The kernel has shape (out_channels, in_channels / groups, *kernel).

    `selects` is True for a 1 x 1 convolution that copies some of its input channels. It costs
    nothing: exported files leave the other channels out of the layer that computes them.

    `constant` is True for a convolution whose kernel is zero, so that its output is its bias. It
    costs nothing: exported files add the bias to what the output was added to.
    """

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    selects: bool = False
    constant: bool = False

    @property
    def is_exported(self) -> bool:
        """False for a layer that exported files do not have."""
        return not (self.selects or self.constant)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel: (T, S / groups, D_h, D_w)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        if self.selects:
            return 0
        weights = 0 if self.constant else math.prod(self.weight_shape)
        return weights + self.bias * self.out_channels

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
        if not self.is_exported:
            return 0
        return math.prod(self.weight_shape) * math.prod(self.output_map(input_map))

    def to_json(self) -> dict[str, Any]:
        """Return the document; what is rarely set is left out where it is not set."""
        document = lists_from(asdict(self))
        return {key: value for key, value in document.items() if value or key not in _RARELY_SET}


@dataclass(frozen=True)
class Layer(PlainLayer):
    """A layer of a network, as stored in the layer table in `data/networks/`.

    A linear layer is a 1 x 1 convolution on a 1 x 1 map. A linear layer behind a flattened C x H x
    W map is a convolution from C channels whose kernel covers the whole map (Kim et al. 2016,
    section 3.1). `not_factored` is the reason why no factorization can replace this layer, or None.

    `fed_by` is the layer whose output channels are the input channels of this layer and are read by
    no other layer, or None. Between the two, each channel is computed on its own, as by activations
    and pooling. Channels can be removed from both layers together.

    `is_added` is True for a convolution whose output is only added to another map, as at the end of
    the branch of a residual block.
    """

    name: str = ""
    kind: Literal["conv", "linear", "transposed_conv"] = "conv"
    input_map: Pair = (1, 1)
    not_factored: str | None = None
    fed_by: str | None = None
    is_added: bool = False

    def macs(self, input_map: Pair) -> int:
        """Return the multiply-accumulates for one image; `input_map` is (height, width)."""
        if self.kind == "transposed_conv":
            # The kernel is applied at each position of the input, not of the output.
            return math.prod(self.weight_shape) * math.prod(input_map)
        return super().macs(input_map)

    @property
    def is_depthwise(self) -> bool:
        """True if each output channel is computed from one input channel."""
        return self.groups == self.in_channels == self.out_channels > 1

    @property
    def positions(self) -> int:
        """Number of positions at which the layer is applied to one image."""
        return math.prod(self.output_map(self.input_map))

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


def narrowed(sequence: Sequence[PlainLayer], channels: int) -> tuple[PlainLayer, ...]:
    """Return a sequence of plain layers whose last layer has fewer output channels.

    A depthwise layer loses its input channels, too. Nothing is left of an empty sequence.
    """
    if not sequence:
        return ()
    *first, last = sequence
    if last.groups == last.in_channels == last.out_channels > 1:
        return *first, replace(last, in_channels=channels, out_channels=channels, groups=channels)
    return *first, replace(last, out_channels=channels)


def with_feeders(
    layers: Iterable[Layer], feeders: Mapping[str, str], added: Collection[str] = ()
) -> tuple[Layer, ...]:
    """Return layers that know by which layer they are fed, and whether their output is added.

    The layers are in forward order. `feeders` names for a layer the one whose channels it alone
    reads, `added` are the layers whose output is only added to another map. A feeder is left out if
    one of the two layers must stay as it is, if their numbers of channels differ, as behind a
    flattened map, or if it is depthwise and nothing feeds it.
    """
    known: dict[str, Layer] = {}

    def can_change(layer: Layer) -> bool:
        return layer.not_factored is None or (layer.is_depthwise and layer.kind == "conv")

    def is_fed_by(layer: Layer, feeder: Layer) -> bool:
        if feeder.kind != layer.kind or feeder.out_channels != layer.in_channels:
            return False
        if any(one.groups > 1 and not one.is_depthwise for one in (layer, feeder)):
            return False
        return feeder.fed_by is not None or not feeder.is_depthwise

    for layer in layers:
        feeder = known.get(feeders.get(layer.name, ""))
        fits = (
            feeder is not None
            and can_change(layer)
            and can_change(feeder)
            and is_fed_by(layer, feeder)
        )
        known[layer.name] = replace(
            layer,
            fed_by=feeder.name if feeder and fits else None,
            is_added=layer.name in added and layer.kind == "conv",
        )
    return tuple(known.values())


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

    def feeders(self, layer: Layer) -> list[Layer]:
        """Return the layers that lose the output channels that a layer does not read any more.

        These are the depthwise layers before the layer, and the layer before these, in the order
        from the layer to the network's inputs. The list is empty if not all of them are known.
        """
        feeders: list[Layer] = []
        while layer.fed_by is not None:
            layer = self[layer.fed_by]
            feeders.append(layer)
            if not layer.is_depthwise:
                return feeders
        return []

    def branch(self, layer: Layer) -> list[Layer]:
        """Return the layers whose outputs are read by this layer alone, through one another.

        Nothing reads them any more if the layer is replaced by its mean output. They are in the
        order from the layer to the network's inputs.
        """
        branch: list[Layer] = []
        while layer.fed_by is not None:
            layer = self[layer.fed_by]
            branch.append(layer)
        return branch

    def sequences_with(
        self, replaced: Mapping[str, Sequence[PlainLayer]]
    ) -> dict[str, tuple[PlainLayer, ...]]:
        """Return the plain layers of each layer, by its name, after some layers are replaced.

        A layer that is not replaced has itself. Output channels that no layer reads any more are
        left out. A layer of which nothing is left has an empty sequence.
        """
        sequences: dict[str, tuple[PlainLayer, ...]] = {
            layer.name: tuple(replaced.get(layer.name, (layer,))) for layer in self.layers
        }
        for layer in self.layers:
            first = sequences[layer.name][0]
            if first.selects:
                for feeder in self.feeders(layer):
                    sequences[feeder.name] = narrowed(sequences[feeder.name], first.out_channels)
        for layer in self.layers:
            if any(plain.constant for plain in sequences[layer.name]):
                sequences |= {unread.name: () for unread in self.branch(layer)}
        return sequences

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
            "layers": [layer.to_json() for layer in self.layers],
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
