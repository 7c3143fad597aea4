"""Plans: the ranks that a rule chose for the layers of a round, and their expected effect."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lowrank.core.layers import PlainLayer, lists_from, tuples_from
from lowrank.core.metric import Metric
from lowrank.errors import UserError
from lowrank.files import read_json


@dataclass(frozen=True)
class PlannedLayer:
    """The plan for one layer: its factorization and ranks, or the reason why it stays as it is.

    `ranks` are the ranks of one group, in the order of the factorization's `rank_names`. `chosen`
    are the ranks from the rule before clamping and rounding. `notes` describe each change to them.
    `parameters` and `macs` are (before, after).
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
        """True if the layer stays as it is."""
        return self.dense_because is not None

    def sentence(self) -> str:
        """Return a sentence for the user: the factorization and ranks, or why there are none."""
        if self.is_dense:
            outcome = f"not replaced: {self.dense_because}"
        elif not self.macs[1]:
            outcome = f"{self.factorization}, no MACs are left"
        else:
            outcome = (
                f"{self.factorization} at ranks {', '.join(map(str, self.ranks))}, "
                f"{self.macs[0] / self.macs[1]:.1f}x fewer MACs"
            )
        return "; ".join([f"{self.name}: {outcome}", *self.notes])


@dataclass(frozen=True)
class Share:
    """The ranks of one layer, from a rule that chooses all ranks before the first round.

    If `ranks` is empty, the layer stays as it is. `loss` is the divergence of outputs that the rule
    expects from this layer, in the unit of the task, or None if the rule does not predict it.
    """

    factorization: str
    ranks: tuple[int, ...]
    loss: float | None = None


@dataclass(frozen=True)
class Loss:
    """The measured divergence of outputs with only this layer factored at these ranks.

    `nats` is in the unit of the task, which is nats for classification.
    """

    layer: str
    factorization: str
    ranks: tuple[int, ...]
    nats: float


# Divergence of the outputs, by (layer, factorization) and by ranks.
Losses = dict[tuple[str, str], dict[tuple[int, ...], float]]


def recorded(losses: Losses) -> tuple[Loss, ...]:
    """Return all measured losses as records for a plan."""
    return tuple(
        Loss(layer, factorization, ranks, nats)
        for (layer, factorization), nats_by_ranks in losses.items()
        for ranks, nats in nats_by_ranks.items()
    )


# Metric of plans that name none.
_ACCURACY = Metric("accuracy", "accuracy", "accuracy")


@dataclass(frozen=True)
class Expected:
    """Metric expected from the ranks of a round, before fine-tuning.

    Parameters
    ----------
    images
        Number of images it was measured on.
    before, after
        Value for the network before the round, and with the layers of the round factored.
    chance
        Value of a network that gives the same answer for all images. None if it is not known; then
        no drop is too large.
    of_labels
        True: metric by labels. False: share of images with the same answer as the original
        network.
    metric
        Name, unit and direction of the values.
    standard_error
        Standard error of the difference of `before` and `after`. None: the largest possible one of
        two percentages.
    accuracy_drop, drop_error
        For outputs that are probabilities: accuracy drop in points that follows if the
        probabilities of the original network are right, and its standard error. It needs no labels.
        An image counts as the probability that the original gives to its own answer, minus the one
        that it gives to the answer of the compressed network. None: not known.
    """

    images: int
    before: float
    after: float
    chance: float | None
    of_labels: bool = True
    metric: Metric = _ACCURACY
    standard_error: float | None = None
    accuracy_drop: float | None = None
    drop_error: float | None = None

    @property
    def points(self) -> tuple[float, float]:
        """Loss of the metric in its unit, and its standard error.

        It is the accuracy drop if that is known, otherwise the difference of the metric. Without
        labels, that is an upper limit of the accuracy drop.
        """
        if self.accuracy_drop is not None and self.drop_error is not None:
            return self.accuracy_drop, self.drop_error
        lost = self.metric.loss(self.before, self.after)
        if self.standard_error is not None:
            return lost, self.standard_error
        share = min(max(lost / 100, 0.0), 1.0)
        return lost, 100 * math.sqrt(share * (1 - share) / self.images)

    @property
    def drop(self) -> float:
        """Lost share of the distance between the metric and `chance`, from 0 to 1."""
        if self.chance is None:
            return 0.0
        above = self.metric.loss(self.before, self.chance)
        if above <= 0:
            return 0.0
        return min(max(self.metric.loss(self.before, self.after) / above, 0.0), 1.0)

    def exceeds(self, largest: float) -> bool:
        """Return whether the drop is larger than `largest` and statistically significant.

        Significant means more than three standard errors, given the number of images.
        """
        standard_error = self.standard_error
        if standard_error is None:
            standard_error = 50.0 * math.sqrt(2 / self.images)
        lost = self.metric.loss(self.before, self.after)
        return self.drop > largest and lost > 3 * standard_error

    @property
    def chance_text(self) -> str:
        """The value of a network that gives the same answer for all images, with its unit."""
        return "not known" if self.chance is None else self.metric.text(self.chance, 1)

    def sentence(self) -> str:
        """Return a sentence for the user that states the expected value of the metric."""
        text = self.metric.text
        chance = f" (chance {self.chance_text})" if self.chance is not None else ""
        return (
            f"expected before any fine-tuning: {self.metric.noun} {text(self.before)} -> "
            f"{text(self.after)} on {self.images} images{chance}{self._accuracy_sentence()}"
        )

    def _accuracy_sentence(self) -> str:
        if self.accuracy_drop is None:
            return ""
        return f", accuracy drop of about {self.accuracy_drop:.2f} +- {self.drop_error:.2f} points"

    def to_json(self) -> dict[str, Any]:
        """Return the document; a metric that is an accuracy in percent is left out."""
        document = asdict(self)
        if replace(self.metric, key=_ACCURACY.key, name=_ACCURACY.name) == _ACCURACY:
            del document["metric"]
        for name in ("standard_error", "accuracy_drop", "drop_error"):
            if document[name] is None:
                del document[name]
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Expected:
        """Read the document that `to_json` returns."""
        metric = {"metric": Metric(**document["metric"])} if "metric" in document else {}
        return cls(**(document | metric))


@dataclass(frozen=True)
class Plan:
    """The ranks of one round, as written by the step `select_ranks`.

    Parameters
    ----------
    layers
        Plan for each layer of the round.
    sensitivity
        Each layer's share of the loss, for all layers of the method. Only for rules that measure
        it.
    shares
        Ranks of all layers of the method. Only for rules that choose them before the first round.
    losses
        All measured losses of single layers. Only for rules that measure them.
    expected
        Expected metric at the ranks of this round, if it was measured.
    """

    layers: tuple[PlannedLayer, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    expected: Expected | None = None

    def __getitem__(self, name: str) -> PlannedLayer:
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the document; pairs are (before, after)."""
        document: dict[str, Any] = {"layers": [lists_from(asdict(layer)) for layer in self.layers]}
        if self.sensitivity:
            document["sensitivity"] = self.sensitivity
        if self.shares:
            document["shares"] = {
                name: lists_from(asdict(share)) for name, share in self.shares.items()
            }
        if self.losses:
            document["losses"] = [lists_from(asdict(loss)) for loss in self.losses]
        if self.expected:
            document["expected"] = self.expected.to_json()
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """Read the document that `to_json` returns."""
        return cls(
            layers=tuple(PlannedLayer(**tuples_from(layer)) for layer in document["layers"]),
            sensitivity=document.get("sensitivity", {}),
            shares={
                name: Share(**tuples_from(share))
                for name, share in document.get("shares", {}).items()
            },
            losses=tuple(Loss(**tuples_from(loss)) for loss in document.get("losses", ())),
            expected=Expected.from_json(document["expected"]) if "expected" in document else None,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from its file. Raises UserError if it is not a plan of this version."""
        document = read_json(path)
        try:
            return cls.from_json(document)
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: not a plan, or a plan written by an earlier version of lowrank. Delete "
                "it and run the same command again."
            ) from None


def known_losses(plans: Iterable[Plan]) -> Losses:
    """Return the losses that the plans record; the last plan counts where several have one."""
    losses: Losses = {}
    for loss in (loss for plan in plans for loss in plan.losses):
        losses.setdefault((loss.layer, loss.factorization), {})[loss.ranks] = loss.nats
    return losses


@dataclass(frozen=True)
class Factored:
    """A replaced layer: its factorization, its ranks and the plain layers that replace it."""

    factorization: str
    ranks: tuple[int, ...]
    relative_error: float
    sequence: tuple[PlainLayer, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the document for the header of a factors file."""
        return lists_from(asdict(self)) | {"sequence": [layer.to_json() for layer in self.sequence]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Factored:
        """Read the document that `to_json` returns."""
        sequence = tuple(PlainLayer(**tuples_from(layer)) for layer in document["sequence"])
        return cls(**(tuples_from(document) | {"sequence": sequence}))
