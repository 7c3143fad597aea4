"""Ranks from a target: the choice for all layers that loses least within the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Share
from lowrank.errors import UserError
from lowrank.factorize import Factorization, kernel_of
from lowrank.ranks.budget_settings import BudgetSettings, Target
from lowrank.ranks.rule import Candidate, Milder, RankRule
from lowrank.ranks.taken_layers import taken_layers

if TYPE_CHECKING:
    from lowrank.ranks.choice import RankChoice
    from lowrank.ranks.knapsack import Trial


class Budget(RankRule[BudgetSettings]):
    """The ranks of all layers that lose least within a target (`lowrank.ranks.knapsack`)."""

    name = "budget"
    settings = BudgetSettings
    looks_at_all_layers = True
    compares_factorizations = True
    no_ranks = "the target is met best without factoring it"

    def ranks(self, candidate: Candidate, settings: BudgetSettings) -> tuple[int, ...] | None:
        if candidate.shared is None:
            raise UserError(
                "select: 'budget' needs losses, which are measured on images by the step "
                "select_ranks or by `lowrank.compress(..., images=...)`. Without images, use "
                "another rule."
            )
        return candidate.shared.get(candidate.layer.name) or None

    def share_out(
        self,
        choice: RankChoice,
        table: LayerTable,
        settings: BudgetSettings,
        say: Callable[[str], object],
    ) -> tuple[dict[str, float], dict[str, Share]]:
        """Measure the loss of the network for each layer, and choose ranks that meet the target."""
        # Only here, because SciPy's solver takes long to import.
        from lowrank.ranks.bounds import bounds_of
        from lowrank.ranks.knapsack import for_target

        candidates = taken_layers(table, choice.all_layers, choice.alternatives)
        unit = choice.network.divergence_unit
        shares = for_target(
            table,
            [partial(_trial, choice, *candidate) for candidate in candidates],
            settings,
            bounds_of(settings, choice.latencies, quantized=choice.quantized),
            choice.network.divergence(),
            losses=choice.losses,
            unit=unit,
            say=say,
        )
        total = sum(share.loss or 0.0 for share in shares.values())
        line = f"sum of the divergences with one layer decomposed at a time: {total:.2g} {unit}"
        say(line.rstrip())
        return {}, shares

    def milder(self, settings: BudgetSettings, ease: float) -> Milder:
        target = _raised(settings.target, 1 - ease)
        written = ", ".join(_entries(target))
        return Milder(settings.model_copy(update={"target": target}), f"target: {{{written}}}")


def _trial(
    choice: RankChoice, layer: Layer, method: Factorization, full_ranks: tuple[int, ...]
) -> Trial:
    from lowrank.ranks.knapsack import Trial

    weight, bias = choice.network.weight_and_bias(layer.name)
    kernel = kernel_of(layer, weight, name=layer.name)
    candidate = Candidate(layer, kernel, method, full_ranks)
    return Trial(candidate, bias, choice.network.moments(layer.name))


def _raised(target: Target, power: float) -> Target:
    """Return the target with each share raised to a power below 1, which brings it nearer to 1."""

    def share(value: float | None) -> float | None:
        return None if value is None else round(value**power, 3)

    return target.model_copy(
        update={name: share(getattr(target, name)) for name in ("macs", "parameters", "size_bytes")}
        | {"latency_ms": {device: share(value) for device, value in target.latency_ms.items()}}
    )


def _entries(target: Target) -> list[str]:
    counts = [
        f"{name}: {value:g}"
        for name in ("macs", "parameters", "size_bytes")
        if (value := getattr(target, name)) is not None
    ]
    devices = ", ".join(f"{device}: {share:g}" for device, share in target.latency_ms.items())
    return counts + ([f"latency_ms: {{{devices}}}"] if devices else [])


ENTRIES = (Budget(),)
