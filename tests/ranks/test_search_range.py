"""The range of costs of a search."""

from pathlib import Path

import numpy as np
import pytest

from lowrank.core.layers import LayerTable
from lowrank.errors import UserError
from lowrank.factorize import get_factorization, one_group
from lowrank.files import read_json
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.bounds import bounds_of
from lowrank.ranks.curves import rank_choices
from lowrank.ranks.latency_model import Latencies, grids_for
from lowrank.ranks.profiled_sequences import possible_sequences
from lowrank.ranks.search_range import search_range

TABLE = LayerTable.from_json(read_json(Path(__file__).parents[2] / "data/networks/resnet20.json"))
LAYERS = {layer.name: "tucker2" for layer in TABLE.layers if layer.kind == "conv"}


def settings(cost: str, **search):
    return rank_settings(
        {
            "select": "budget",
            "target": {"accuracy_drop": 1},
            "search": {"cost": cost, **search},
            "negligible": 0,
        }
    )


def test_the_range_of_macs_ends_at_the_original():
    rule = settings("macs")
    low, high = search_range(TABLE, LAYERS, [], rule, {})
    assert high == pytest.approx(1.0)
    tucker2 = get_factorization("tucker2")
    (bound,) = bounds_of(rule.at_share(0.5), {})
    cheapest = dict.fromkeys((layer.name for layer in TABLE.layers), 0.0)
    for layer in TABLE.layers:
        cheapest[layer.name] = bound.of_dense(layer)
        if layer.name in LAYERS:
            choices = rank_choices(layer, tucker2, tucker2.full_ranks(one_group(layer)), rule)
            cheapest[layer.name] = min(bound.of(layer, tucker2, ranks) for ranks in choices)
    total = sum(layer.dense_macs for layer in TABLE.layers)
    assert low == pytest.approx(sum(cheapest.values()) / total)
    # Another factorization can only make the network cheaper.
    assert search_range(TABLE, LAYERS, ["spatial_svd"], rule, {})[0] <= low


def latencies(milliseconds_by_mac: float) -> Latencies:
    """Return latencies in proportion to the MACs; the original takes 2 ms, of which 0.5 ms rest."""
    rule = settings("latency_ms.local")
    grids = grids_for(possible_sequences(TABLE, LAYERS, [], rule))

    def measure(layers):
        return [milliseconds_by_mac * plain.macs(input_map) for plain, input_map in layers]

    return Latencies.measured(2.0, 0.5, grids, measure)


def test_the_range_of_latency_ends_at_the_original_in_int8():
    dense = sum(layer.dense_macs for layer in TABLE.layers)
    # In int8, the layers take 0.5 ms and the rest 0.5 ms.
    measured = {"local": latencies(0.5 / dense)}
    low, high = search_range(TABLE, LAYERS, [], settings("latency_ms.local"), measured)
    assert high == pytest.approx(0.5)
    assert 0.25 < low < high


def test_a_range_in_the_settings_is_used():
    rule = settings("macs", between=[0.2, 0.4])
    assert search_range(TABLE, LAYERS, [], rule, {}) == (0.2, 0.4)


def test_an_error_if_nothing_is_cheaper():
    with pytest.raises(UserError, match=r"no ranks make the network cheaper in macs"):
        search_range(TABLE, {}, [], settings("macs"), {})


@pytest.mark.parametrize(("layer", "expected"), [("blocks.0.conv1", 8), ("blocks.8.conv1", 16)])
def test_multiples_depend_on_the_width_of_the_layer(layer, expected):
    rule = rank_settings({"select": "vbmf", "multiple_of": "auto"})
    tucker2 = get_factorization("tucker2")
    full = tucker2.full_ranks(one_group(TABLE[layer]))
    choices = rank_choices(TABLE[layer], tucker2, full, rule)
    assert rule.multiple_for(TABLE[layer]) == expected
    assert np.gcd.reduce(np.ravel(choices)) == expected
