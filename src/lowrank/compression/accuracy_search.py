"""Search for the cheapest network within an accuracy drop, without training and without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank.compression.in_memory import Compression
from lowrank.errors import UserError
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.bisection import Found, cheapest, next_share
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.search_range import search_range


class AccuracySearch:
    """Search for the cheapest network in memory within a target of `accuracy_drop`.

    In each trial, the factors are fitted to one half of the samples, and the drop is measured on
    the other half. It is that of the network in int8, if the result will be in int8. But if int8 of
    the original already loses more than the target, it is that of the network in float.

    Parameters
    ----------
    compression
        What is compressed. The search adds the latencies that the target needs.
    rule
        Settings with the target.

    Raises
    ------
    UserError
        If there are no samples.
    """

    def __init__(self, compression: Compression[Any], rule: BudgetSettings) -> None:
        network = compression.network
        if not network.samples:
            raise UserError(
                "ranks.target.accuracy_drop: the drop is measured on images, but `images` is None. "
                'Pass some hundred images, or a target of costs, such as {"macs": 0.5}.'
            )
        self._compression, self._rule = compression, rule
        self._fitted, self._judge = network.divided(network.samples // 2)
        self._unit = ""

    def settings(self) -> RankSettings:
        """Return the settings of the cheapest trial within the target.

        If there is none, but int8 of the original is within the target, the settings leave all
        layers as they are.

        Raises UserError if neither is within the target, if outputs cannot be compared, or if the
        network cannot be quantized.
        """
        rule, say = self._rule, self._compression.say
        in_int8 = self._compression.int8
        if in_int8:
            control = self._found("int8 of the original", self._fitted, 1.0, in_int8=True)
            in_int8 = self._is_within(control)
            if not in_int8:
                say(
                    "int8 of the original loses more than the target allows, so the trials are "
                    "judged in float"
                )
        trials = self._trials(in_int8=in_int8)
        if in_int8 and not any(map(self._is_within, trials)):
            say("only int8 of the original is within the target, so no layer is replaced")
            return rank_settings({"select": "vbmf", "weaken": 1.0})
        best = cheapest(
            trials,
            accuracy_drop=rule.allowed_drop,
            confidence=rule.search.confidence,
            unit=self._unit,
            advice="pass more images",
        )
        return rule.at_share(trials[best].share)

    def _trials(self, *, in_int8: bool) -> list[Found]:
        compression, rule = self._compression, self._rule
        table = compression.network.table.with_obstacles(compression.network.obstacles)
        latencies = compression.measured_latencies(table, rule)
        between = search_range(
            table,
            compression.assigned,
            compression.factorize.alternatives,
            rule,
            latencies,
            quantized=compression.int8,
        )
        trial = replace(compression, network=self._fitted, moments={}, factored={})
        trials: list[Found] = []
        for number in range(1, rule.search.trials + 1):
            share = next_share(
                between,
                trials,
                accuracy_drop=rule.allowed_drop,
                confidence=rule.search.confidence,
            )
            network, _ = trial.at(rule.at_share(share))
            label = f"trial {number} of {rule.search.trials}: {share:.3f} of {rule.search.cost}"
            trials.append(self._found(label, network, share, in_int8=in_int8))
        return trials

    def _is_within(self, found: Found) -> bool:
        return found.within(self._rule.allowed_drop, self._rule.search.confidence)

    def _found(self, label: str, network: Any, share: float, *, in_int8: bool) -> Found:
        """Measure the drop of a network, and say it."""
        delivered = network.in_int8() if in_int8 else network
        expected = delivered.with_samples_of(self._judge).expected_from(self._judge)
        if expected is None:
            raise UserError(
                "ranks.target.accuracy_drop: the outputs of this network cannot be compared. Use a "
                'target of costs, such as {"macs": 0.5}.'
            )
        found, self._unit = Found(share, *expected.points), expected.metric.difference_unit
        self._compression.say(
            f"{label} loses {found.drop:.2f} +- {found.standard_error:.2f} {self._unit}"
        )
        return found
