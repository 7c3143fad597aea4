"""Ranks in proportion to the loss of the network for each layer (Astrid & Lee)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Share
from lowrank.errors import UserError
from lowrank.factorize import Decomposition, Factorization, decompose
from lowrank.ranks.rank_settings import AdjustedSettings
from lowrank.ranks.rule import Candidate, Milder, RankRule
from lowrank.ranks.rules.ratio import milder_ratio
from lowrank.ranks.scale import cost_of, dense_cost, ranks_of_size, ranks_within
from lowrank.ranks.taken_layers import taken_layers

if TYPE_CHECKING:
    from lowrank.ranks.choice import RankChoice


class SensitivitySettings(AdjustedSettings):
    """Ranks by the loss that each layer causes."""

    select: Literal["sensitivity"] = Field(
        "sensitivity", description="Ranks by the loss that each layer causes."
    )
    ratio: float = Field(4.0, gt=1, description="Original cost divided by the cost of the factors.")
    cost: Literal["macs", "parameters"] = Field("macs", description="Cost that `ratio` refers to.")
    trial_ratio: float = Field(
        4.0,
        gt=1,
        description="`ratio` at which each layer is decomposed alone to measure its loss.",
    )
    images: int = Field(
        500, ge=1, description="Number of validation images on which losses are measured."
    )

    @property
    def measured_images(self) -> int:
        return self.images


class Sensitivity(RankRule[SensitivitySettings]):
    """Ranks in proportion to the loss of the network with only that layer decomposed."""

    name = "sensitivity"
    settings = SensitivitySettings
    looks_at_all_layers = True

    def ranks(self, candidate: Candidate, settings: SensitivitySettings) -> tuple[int, ...]:
        ranks = (candidate.shared or {}).get(candidate.layer.name)
        if ranks is None:
            raise UserError(
                "select: 'sensitivity' needs losses, which the step select_ranks measures. Outside "
                "the workflow, use another rule, or pass ranks with 'fixed'."
            )
        return ranks

    def share_out(
        self,
        choice: RankChoice,
        table: LayerTable,
        settings: SensitivitySettings,
        say: Callable[[str], object],
    ) -> tuple[dict[str, float], dict[str, Share]]:
        """Measure the loss of the network for each layer, and share out the ranks accordingly."""
        candidates = list(taken_layers(table, choice.all_layers))

        def trials() -> Iterator[tuple[str, Decomposition]]:
            for layer, method, full_ranks in candidates:
                limit = dense_cost(layer, settings.cost) / settings.trial_ratio
                ranks = ranks_within(layer, method, full_ranks, limit=limit, cost=settings.cost)
                weight, bias = choice.network.weight_and_bias(layer.name)
                moments = choice.network.moments(layer.name)
                yield layer.name, decompose(method, layer, weight, bias, ranks, moments)

        if not choice.measured:
            choice.measured |= choice.network.losses(trials())
        sensitivity, ranks = shared_out(candidates, choice.measured, settings)
        order = sorted(sensitivity, key=lambda name: sensitivity[name], reverse=True)
        say(f"most sensitive first: [{', '.join(order)}]")
        return sensitivity, {
            name: Share(choice.all_layers[name], ranks_of_layer)
            for name, ranks_of_layer in ranks.items()
        }

    def milder(self, settings: SensitivitySettings, ease: float) -> Milder:
        return Milder.of(settings, "ratio", milder_ratio(settings.ratio, ease))


def shared_out(
    layers: Sequence[tuple[Layer, Factorization, tuple[int, ...]]],
    losses: Mapping[str, float],
    settings: SensitivitySettings,
) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """Return sensitivities, and ranks in proportion to them.

    A layer's sensitivity is the loss of the network with only that layer decomposed at trial ranks,
    divided by the sum of these losses (Astrid & Lee 2018). Its rank is its sensitivity times a
    total, separately for convolutions and for linear layers. The total is the largest at which the
    layers of the kind together cost at most their cost / `ratio`. A layer whose factors would cost
    more than the layer counts with its own cost. For several ranks, this applies to their geometric
    mean.

    Parameters
    ----------
    layers
        All layers of the method, with their factorizations and full ranks.
    losses
        Mean loss, by the name of the layer that was decomposed alone.

    Returns
    -------
    tuple
        Sensitivities, which sum to 1 for each kind, and ranks, both by layer name.
    """
    shares: dict[str, float] = {}
    ranks: dict[str, tuple[int, ...]] = {}
    for is_linear in (False, True):
        kind = [entry for entry in layers if (entry[0].kind == "linear") == is_linear]
        total_loss = sum(losses[layer.name] for layer, _, _ in kind)
        shares |= {layer.name: losses[layer.name] / total_loss for layer, _, _ in kind}
        ranks |= _ranks_of_kind(kind, shares, settings)
    return shares, ranks


def _ranks_of_kind(
    layers: Sequence[tuple[Layer, Factorization, tuple[int, ...]]],
    shares: Mapping[str, float],
    settings: SensitivitySettings,
) -> dict[str, tuple[int, ...]]:
    if not layers:
        return {}

    def ranks_at(total: float) -> dict[str, tuple[int, ...]]:
        return {
            layer.name: ranks_of_size(layer, factorization, full, total * shares[layer.name])
            for layer, factorization, full in layers
        }

    def cost_at(total: float) -> int:
        ranks = ranks_at(total)
        return sum(
            min(
                cost_of(layer, factorization, ranks[layer.name], settings.cost),
                dense_cost(layer, settings.cost),
            )
            for layer, factorization, _ in layers
        )

    limit = sum(dense_cost(layer, settings.cost) for layer, _, _ in layers) / settings.ratio
    low = 0.0
    high = max(max(full) / shares[layer.name] for layer, _, full in layers if shares[layer.name])
    if cost_at(high) <= limit:
        return ranks_at(high)
    while high - low > 0.1:
        middle = (low + high) / 2
        if cost_at(middle) <= limit:
            low = middle
        else:
            high = middle
    return ranks_at(low)


ENTRIES = (Sensitivity(),)
