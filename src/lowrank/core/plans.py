"""Plans: the ranks that a rule chose for the layers of a round, and what it expects of them."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from lowrank.core.layers import PlainLayer, lists_from, tuples_from
from lowrank.errors import UserError
from lowrank.files import read_json


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

    def sentence(self) -> str:
        """Say what is expected, for a user."""
        what = "accuracy" if self.of_labels else "agreement with the original"
        return (
            f"expected before any fine-tuning: {what} {self.before:.2f} % -> "
            f"{self.after:.2f} % on {self.images} images (chance {self.chance:.1f} %)"
        )


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
        document = {"layers": [lists_from(asdict(layer)) for layer in self.layers]}
        if self.sensitivity:
            document["sensitivity"] = self.sensitivity
        if self.shares:
            document["shares"] = {
                name: lists_from(asdict(share)) for name, share in self.shares.items()
            }
        if self.losses:
            document["losses"] = [lists_from(asdict(loss)) for loss in self.losses]
        if self.expected:
            document["expected"] = asdict(self.expected)
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        return cls(
            layers=tuple(PlannedLayer(**tuples_from(layer)) for layer in document["layers"]),
            sensitivity=document.get("sensitivity", {}),
            shares={
                name: Share(**tuples_from(share))
                for name, share in document.get("shares", {}).items()
            },
            losses=tuple(Loss(**tuples_from(loss)) for loss in document.get("losses", ())),
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
        return lists_from(asdict(self)) | {
            "sequence": [lists_from(asdict(layer)) for layer in self.sequence]
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Factored:
        """The inverse of `to_json`."""
        plain = tuple(PlainLayer(**tuples_from(layer)) for layer in document["sequence"])
        return cls(**(tuples_from(document) | {"sequence": plain}))
