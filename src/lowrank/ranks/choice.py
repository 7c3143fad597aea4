"""Ranks for the layers of a round, and the accuracy drop that they are expected to cause.

Both the pipeline and `lowrank.compress` choose ranks here. Measurements of the network come from a
`MeasuredNetwork`. One implementation reads stored files, the other holds PyTorch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np

from lowrank.core.layers import LayerTable
from lowrank.core.plans import Expected, Factored, Losses, Plan, PlannedLayer, Share, recorded
from lowrank.errors import UserError
from lowrank.factorize import Decomposition, Moments, decompose, get_factorization
from lowrank.ranks.latency_model import Latencies
from lowrank.ranks.milder import nearest_that_keeps, ruined
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.removed_channels import without_removed_channels
from lowrank.ranks.rule import rule_of
from lowrank.ranks.select import choose_ranks

Say = Callable[[str], object]
# Layers and their factors. An iterator that creates one at a time saves memory.
Replacements = Iterable[tuple[str, Decomposition]]

# A decomposition without a closed form needs a few seconds for about this many multiplications of
# its kernel. If a round needs more, trying its ranks would take as long as the round.
_MAX_MULTIPLICATIONS = 1e8


class MeasuredNetwork(Protocol):
    """The network before a round: the parameters of its layers, and its behavior on images."""

    @property
    def divergence_unit(self) -> str:
        """Unit of the divergence of outputs, such as nats."""

    def weight_and_bias(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the kernel of a layer, or the product of its factors, and its bias."""

    def factored(self, name: str) -> Factored | None:
        """Return the factors that replaced a layer; None for a dense layer."""

    def moments(self, name: str) -> Moments | None:
        """Return the moments of a layer's inputs; None if the factors approximate its weights."""

    def losses(self, replacements: Replacements) -> dict[str, float]:
        """Measure the loss on labels with one layer at a time replaced.

        Raises UserError without labeled images.
        """

    def divergence(self) -> Callable[[Replacements], Iterable[float]]:
        """Return a function that measures how much replaced layers change the outputs.

        It is the argument `measured` of `for_target`. Raises UserError without images.
        """

    def expected(self, replacements: Replacements) -> Expected | None:
        """Measure the metric with all these layers replaced; return None without images."""


@dataclass(frozen=True)
class ChosenRanks:
    """Ranks that a rule chose for the layers of a round.

    Parameters
    ----------
    layers
        Plan for each layer of the round.
    sensitivity, shares
        Values for the layers of all rounds, from rules that choose all ranks before the first
        round.
    """

    layers: tuple[PlannedLayer, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)


@dataclass
class RankChoice:
    """The choice of ranks in one round; different rules can be tried one after another.

    Parameters
    ----------
    network
        The network before the round.
    table
        Its layers.
    layers, all_layers
        Factorization by layer name: for this round, and for all rounds.
    alternatives
        More factorizations, for `budget`.
    latencies
        Latencies of layers, by device, for a target of milliseconds.
    quantized
        Whether the compressed network is in int8.
    losses
        Known losses; new measurements are added.
    shares
        Shares from an earlier round; None in the first round.
    stages_left
        Number of rounds, including this one, until the rule's ranks are reached.
    measured
        Known losses on labels, by the name of the layer that was decomposed alone; a rule adds new
        ones.
    """

    network: MeasuredNetwork
    table: LayerTable
    layers: Mapping[str, str]
    all_layers: Mapping[str, str]
    alternatives: Sequence[str] = ()
    latencies: Mapping[str, Latencies] = field(default_factory=dict)
    quantized: bool = False
    losses: Losses = field(default_factory=dict)
    shares: dict[str, Share] | None = None
    stages_left: int = 1
    measured: dict[str, float] = field(default_factory=dict)

    def at(self, settings: RankSettings, *, say: Say) -> ChosenRanks:
        """Choose the ranks by the rule that the settings select.

        Raises UserError if the rule needs measurements that the network cannot provide.
        """
        table = leave_negligible(self.table, settings.negligible_share)
        layers = dict(self.layers)
        sensitivity: dict[str, float] = {}
        shares: dict[str, Share] = {}
        ranks: dict[str, tuple[int, ...]] | None = None
        rule = rule_of(settings)
        if rule.looks_at_all_layers and layers:
            if self.shares is not None:
                shares = self.shares
            else:
                sensitivity, shares = rule.share_out(self, table, settings, say)
            ranks = {name: share.ranks for name, share in shares.items()}
            layers |= {name: shares[name].factorization for name in layers if name in shares}
        planned = tuple(
            choose_ranks(
                table[name],
                self.network.weight_and_bias(name)[0],
                factorization,
                settings,
                factored=self.network.factored(name),
                stages_left=self.stages_left,
                shared=ranks,
            )
            for name, factorization in layers.items()
        )
        return ChosenRanks(without_removed_channels(table, planned), sensitivity, shares)

    def plan(self, settings: RankSettings, *, measure: bool, say: Say) -> Plan:
        """Return the plan of the round, with the expected metric if `measure`.

        Raises UserError if the rule needs measurements that the network cannot provide.
        """
        chosen = self.at(settings, say=say)
        for planned in chosen.layers:
            say(planned.sentence())
        return Plan(
            layers=chosen.layers,
            sensitivity=chosen.sensitivity,
            # The plan of the first round records them for all rounds.
            shares=chosen.shares if self.shares is None else {},
            losses=recorded(self.losses),
            expected=self.expected(chosen.layers, say=say) if measure else None,
        )

    def expected(self, planned: Sequence[PlannedLayer], *, say: Say) -> Expected | None:
        """Measure the metric of the network at these ranks, without fine-tuning.

        None without images, or if the decomposition itself takes long.
        """
        factored = [layer for layer in planned if not layer.is_dense]
        if not factored:
            return None
        if not is_cheap(self.table, factored):
            say(
                "the accuracy drop at these ranks is measured later, before fine-tuning: measuring "
                "it now would take as long as the decomposition"
            )
            return None
        say(f"trying these ranks: decomposing {len(factored)} layers, without fine-tuning")
        expected = self.network.expected(self._replacements(factored))
        if expected:
            say(expected.sentence())
        return expected

    def refuse_what_ruins(
        self, settings: RankSettings, expected: Expected, *, where: str, say: Say
    ) -> None:
        """Raise UserError if the expected drop is larger than the rule allows.

        The message names the nearest milder setting, to be written under `where`.
        """
        if not expected.exceeds(settings.largest_drop):
            return
        say(
            "the drop is larger than `largest_drop` allows; searching for the nearest milder "
            "setting"
        )
        tried: list[Expected] = []

        def keeps_enough(milder: RankSettings) -> bool:
            planned = self.at(milder, say=lambda _: None).layers
            outcome = self.expected(planned, say=say)
            if outcome is None:
                # Either no layer is left to decompose, or the decomposition cannot be tried
                # quickly.
                return all(layer.is_dense for layer in planned)
            if enough := not outcome.exceeds(settings.largest_drop):
                tried.append(outcome)
            return enough

        # A later round cannot change ranks that an earlier round shared out.
        nearest = None if self.shares is not None else nearest_that_keeps(settings, keeps_enough)
        advice = "Choose milder settings"
        if nearest:
            noun, text = expected.metric.noun, expected.metric.text
            advice = f"The nearest setting that keeps enough {noun} is `{nearest.written}`"
            if tried:
                advice += f" ({text(tried[-1].after, 1)} before fine-tuning)"
            advice += f"; write it under `{where}`, or under its `models` for this network alone"
        raise UserError(ruined(expected, settings.largest_drop, where, advice))

    def _replacements(self, planned: Iterable[PlannedLayer]) -> Iterator[tuple[str, Decomposition]]:
        for layer in planned:
            weight, bias = self.network.weight_and_bias(layer.name)
            yield (
                layer.name,
                decompose(
                    get_factorization(layer.factorization),
                    self.table[layer.name],
                    weight,
                    bias,
                    layer.ranks,
                    self.network.moments(layer.name),
                ),
            )


def is_cheap(table: LayerTable, planned: Iterable[PlannedLayer]) -> bool:
    """Return whether all layers of a round can be decomposed one more time in a few seconds."""
    work = 0.0
    for layer in planned:
        if layer.is_dense or get_factorization(layer.factorization).is_closed_form:
            continue
        # Number of kernel elements times ranks, because terms are computed one after another.
        work += float(prod(table[layer.name].weight_shape)) * max(layer.ranks)
    return work <= _MAX_MULTIPLICATIONS
