"""The small documents that pass between steps: layers, schedules, plans. Nothing heavy here.

The Snakefile imports this module to know every round and layer before anything runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from lowrank.errors import UserError
from lowrank.files import read_json

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

    A linear layer is a 1 x 1 convolution on a 1 x 1 map; behind a flattened C x H x W map it is a
    convolution from C channels whose kernel is the whole map (Kim et al. 2016, section 3.1).
    `not_factored` says why no factorization takes this layer; None for one that can be taken.
    """

    name: str = ""
    kind: Literal["conv", "linear", "transposed_conv"] = "conv"
    input_map: Pair = (1, 1)
    not_factored: str | None = None

    def macs(self, input_map: Pair) -> int:
        """Multiply-accumulates for one image whose map has that height and width."""
        if self.kind == "transposed_conv":
            # The kernel is applied at each place of the input rather than of the output.
            return math.prod(self.weight_shape) * math.prod(input_map)
        return super().macs(input_map)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the layer as it is, for one image."""
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

    def with_obstacles(self, reasons: Mapping[str, str]) -> LayerTable:
        """The table with further layers marked as not to be factored, by name, and why."""
        return replace(
            self,
            layers=tuple(
                replace(layer, not_factored=layer.not_factored or reasons.get(layer.name))
                for layer in self.layers
            ),
        )

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
        try:
            return cls(
                network=document["network"],
                input_shape=tuple(document["input_shape"]),
                layers=tuple(Layer(**_tupled(layer)) for layer in document["layers"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "a layer table (data/networks/) is damaged, or of an earlier version of lowrank "
                f"({type(error).__name__}: {error}). Delete it and run the same command again."
            ) from error


@dataclass(frozen=True)
class PlannedLayer:
    """What a round does to one layer: the factorization and its ranks, or why it stays as it is.

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
class Share:
    """What a rule that looks at all layers together gives one of them, before the first round.

    No ranks: the layer stays as it is. `loss` is what the rule expects the network to lose by it,
    in nats, where it predicts that.
    """

    factorization: str
    ranks: tuple[int, ...]
    loss: float | None = None


@dataclass(frozen=True)
class Loss:
    """What the network was measured to lose, in nats, by one layer alone at those ranks."""

    layer: str
    factorization: str
    ranks: tuple[int, ...]
    nats: float


@dataclass(frozen=True)
class Expected:
    """What a round's ranks leave of the accuracy before any fine-tuning, on some images, in %.

    Parameters
    ----------
    images
        How many.
    before, after
        Of the network before the round, and with its layers decomposed.
    chance
        What guessing would reach.
    of_labels
        Accuracy is meant. Otherwise: how often the answer is that of the original network.
    """

    images: int
    before: float
    after: float
    chance: float
    of_labels: bool = True

    @property
    def drop(self) -> float:
        """The share that is lost of what is above chance, from 0 to 1."""
        above = self.before - self.chance
        return min(max((self.before - self.after) / above, 0.0), 1.0) if above > 0 else 0.0

    def exceeds(self, largest: float) -> bool:
        """Whether more is lost than that share, and more than chance in the images explains."""
        standard_error = 50.0 * math.sqrt(2 / self.images)
        return self.drop > largest and self.before - self.after > 3 * standard_error


@dataclass(frozen=True)
class Plan:
    """The ranks of one round, as `select_ranks` writes them.

    Parameters
    ----------
    layers
        What the round does to each of its layers.
    sensitivity
        Where the rule measured it: each layer's share of the loss, of every layer of the method.
    shares
        Where the rule shares out ranks before the first round: what every layer of the method gets.
    losses
        Where it measured what layers lose by themselves: all that it found.
    expected
        What the round's ranks leave of the accuracy, where that was tried.
    """

    layers: tuple[PlannedLayer, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    expected: Expected | None = None

    def __getitem__(self, name: str) -> PlannedLayer:
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """The document; pairs are (before, after)."""
        document = {"layers": [_listed(asdict(layer)) for layer in self.layers]}
        if self.sensitivity:
            document["sensitivity"] = self.sensitivity
        if self.shares:
            document["shares"] = {
                name: _listed(asdict(share)) for name, share in self.shares.items()
            }
        if self.losses:
            document["losses"] = [_listed(asdict(loss)) for loss in self.losses]
        if self.expected:
            document["expected"] = asdict(self.expected)
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        return cls(
            layers=tuple(PlannedLayer(**_tupled(layer)) for layer in document["layers"]),
            sensitivity=document.get("sensitivity", {}),
            shares={
                name: Share(**_tupled(share)) for name, share in document.get("shares", {}).items()
            },
            losses=tuple(Loss(**_tupled(loss)) for loss in document.get("losses", ())),
            expected=Expected(**document["expected"]) if "expected" in document else None,
        )

    @classmethod
    def read(cls, path: str | os.PathLike) -> Plan:
        """A plan from its file. Raises UserError where it is none of this version."""
        document = read_json(path)
        try:
            return cls.from_json(document)
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: not a plan, or one of an earlier version of lowrank. Delete it and run "
                "the same command again."
            ) from None


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


def rounds_of(
    layers: Sequence[Layer],
    *,
    kind: str = "one_shot",
    group: int = 1,
    order: str | Sequence[str] = "network",
    stages: int = 1,
) -> list[list[str]]:
    """The names of the layers that each round takes.

    Parameters
    ----------
    layers
        The layers that a method takes, in network order.
    kind
        `one_shot`: one round with every layer (Kim et al. 2016). `iterative`: a round for every
        `group` layers (Astrid & Lee 2017). `hybrid`: convolutions as in `iterative`, then all
        linear layers in one round (our reading of Astrid & Lee 2018). `multi_stage`: `stages`
        rounds with every layer (Gusak et al. 2019).
    group
        Layers in one round of `iterative` and `hybrid`.
    order
        `network`: first to last; `reverse`: last to first; or names, which come first in the
        order given. Layers that are not named follow in network order.
    stages
        Rounds of `multi_stage`.
    """
    ordered = _ordered(layers, order)
    names = [layer.name for layer in ordered]
    match kind:
        case "one_shot":
            return [names]
        case "multi_stage":
            return [names] * stages
        case "iterative":
            return _in_groups(names, group)
    linear = [layer.name for layer in ordered if layer.kind == "linear"]
    convolutions = [name for name in names if name not in linear]
    return _in_groups(convolutions, group) + ([linear] if linear else [])


def _ordered(layers: Sequence[Layer], order: str | Sequence[str]) -> list[Layer]:
    if order == "network":
        return list(layers)
    if order == "reverse":
        return list(reversed(layers))
    place = {name: index for index, name in enumerate(order)}
    return sorted(layers, key=lambda layer: place.get(layer.name, len(place)))


def _in_groups(names: Sequence[str], group: int) -> list[list[str]]:
    return [list(names[start : start + group]) for start in range(0, len(names), group)]


def _tupled(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }


def _listed(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in document.items()
    }


def assign_factorizations(
    table: LayerTable,
    factorize: Mapping[str, str | None],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """The factorization of each layer that a method takes, by name, in network order.

    `factorize` maps a kind (`first_conv`, `conv`, `pointwise_conv`, `flattened_linear`, `linear`)
    to the name of a factorization, or to None where the kind is left dense; a linear layer behind
    a flattened map is taken as `linear` where `flattened_linear` is None. Layers that no
    factorization can take (`Layer.not_factored`) are left out, and so are those whose name fits
    none of the patterns of `include`, or one of `exclude` (`*`, `?` and `[...]` as in a shell).
    """
    assigned = {}
    first_conv = next((layer.name for layer in table.layers if layer.kind == "conv"), None)
    for layer in table.layers:
        if layer.not_factored or not fits(layer.name, include) or fits(layer.name, exclude):
            continue
        pointwise = layer.kernel == (1, 1)
        if layer.kind == "linear":
            kinds = ["linear"] if pointwise else ["flattened_linear", "linear"]
        elif layer.name == first_conv:
            kinds = ["first_conv"]
        else:
            kinds = ["pointwise_conv"] if pointwise else ["conv"]
        if factorization := next(filter(None, map(factorize.get, kinds)), None):
            assigned[layer.name] = factorization
    return assigned


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
