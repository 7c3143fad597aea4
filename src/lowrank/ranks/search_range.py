"""The range of costs in which a search for a target of accuracy looks, if the user gives none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lowrank.core.layers import LayerTable
from lowrank.errors import UserError
from lowrank.ranks.bounds import Bound, bounds_of
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.curves import rank_choices
from lowrank.ranks.latency_model import Latencies
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.taken_layers import taken_layers

# A search is pointless if the cheapest network costs more than this share of the unchanged one.
_LARGEST_LOW = 0.98


def range_of_costs(
    table: LayerTable,
    layers: Mapping[str, str],
    alternatives: Iterable[str],
    settings: RankSettings,
    bound: Bound,
) -> tuple[float, float]:
    """Return the costs of the cheapest and of the unchanged network, as shares of the original's.

    The unchanged network costs less than the original if it is delivered in int8. The cheapest
    network has the lowest ranks in each layer. What removed channels save in the layer that feeds
    them is not counted.

    Parameters
    ----------
    table
        Layers of the network.
    layers
        Factorization by layer.
    alternatives
        Alternative factorizations.
    settings
        Settings that limit the ranks.
    bound
        The cost. Its share does not matter.
    """
    table = leave_negligible(table, settings.negligible_share)
    dense = {layer.name: bound.of_dense(layer) for layer in table.layers}
    cheapest = dict(dense)
    for layer, method, full_ranks in taken_layers(table, layers, alternatives):
        costs = (
            bound.of(layer, method, ranks)
            for ranks in rank_choices(layer, method, full_ranks, settings)
        )
        cheapest[layer.name] = min(cheapest[layer.name], *costs, dense[layer.name])
    low, high = (
        bound.share_of_network(table, bound.rest + sum(costs.values()))
        for costs in (cheapest, dense)
    )
    return low, min(high, 1.0)


def search_range(
    table: LayerTable,
    layers: Mapping[str, str],
    alternatives: Iterable[str],
    settings: BudgetSettings,
    latencies: Mapping[str, Latencies],
    *,
    quantized: bool = False,
) -> tuple[float, float]:
    """Return the range of a search: that of the settings, or the one that the network allows.

    Parameters
    ----------
    table, layers, alternatives
        As for `range_of_costs`.
    settings
        Settings of the search.
    latencies
        Latencies of layers by device, if the cost is a latency.
    quantized
        Whether the compressed network and the latencies are in int8.

    Raises
    ------
    UserError
        If no ranks make the network cheaper.
    """
    if settings.search.between:
        return settings.search.between
    (bound,) = bounds_of(settings.at_share(0.5), latencies, quantized=quantized)
    low, high = range_of_costs(table, layers, alternatives, settings, bound)
    if low > _LARGEST_LOW * high:
        raise UserError(
            f"ranks.search: no ranks make the network cheaper in {bound.name}: the cheapest has "
            f"{low:.3f} of the original's, the network without factors {high:.3f}. Choose another "
            "`search.cost`, let the method factor more layers, or only quantize the network."
        )
    return low, high
