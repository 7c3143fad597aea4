"""Ranks in proportion to the loss of the network for each layer (Astrid & Lee)."""

from collections.abc import Mapping, Sequence

from lowrank.config.ranks import RankSettings
from lowrank.core.layers import Layer
from lowrank.errors import UserError
from lowrank.factorize import Factorization
from lowrank.ranks.rule import Candidate
from lowrank.ranks.scale import cost_of, dense_cost, ranks_of_size


def sensitivity(candidate: Candidate, settings: RankSettings) -> tuple[int, ...]:
    """Return the ranks that `shared_out` chose before the first round, passed as `table`.

    Raises UserError if they are missing.
    """
    if candidate.layer.name not in settings.table:
        raise UserError(
            "select: 'sensitivity' needs losses, which the step select_ranks measures. Outside "
            "the workflow, use another rule, or pass ranks with 'fixed'."
        )
    return settings.table[candidate.layer.name]


def shared_out(
    layers: Sequence[tuple[Layer, Factorization, tuple[int, ...]]],
    losses: Mapping[str, float],
    settings: RankSettings,
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
    settings: RankSettings,
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
