"""Choice of ranks for a round, on a network with answers set by the tests."""

import numpy as np
import pytest

from lowrank.core.layers import Layer, LayerTable
from lowrank.core.plans import Expected, PlannedLayer
from lowrank.errors import UserError
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.choice import RankChoice, is_cheap

LAYERS = tuple(
    Layer(16, 16, (3, 3), padding=(1, 1), name=name, input_map=(8, 8)) for name in ("a", "b")
)
TABLE = LayerTable("net", (3, 8, 8), LAYERS)


class Network:
    """A network with random kernels; `after` is its accuracy (%) with all layers replaced."""

    def __init__(self, after=90.0):
        self.after, self.replaced = after, []

    def weight_and_bias(self, name):
        seed = sum(map(ord, name))
        return np.random.default_rng(seed).standard_normal((16, 16, 3, 3), np.float32), None

    def factored(self, name):
        return None

    def moments(self, name):
        return None

    def losses(self, replacements):
        return {name: {"a": 3.0, "b": 1.0}[name] for name, _ in replacements}

    def expected(self, replacements):
        self.replaced.append({name: factors.sequence for name, factors in replacements})
        return Expected(1000, 90.0, self.after, 10.0)


def choice(network, **options):
    layers = {"a": "tucker2", "b": "tucker2"}
    return RankChoice(network, TABLE, layers, layers, **options)


def silent(_):
    pass


def test_sensitivity_shares_out_ranks_by_measured_losses():
    rule, messages = rank_settings({"select": "sensitivity", "ratio": 3, "negligible": 0}), []
    chosen = choice(Network()).at(rule, say=messages.append)
    assert chosen.sensitivity == {"a": 0.75, "b": 0.25}
    assert chosen.shares["a"].ranks > chosen.shares["b"].ranks
    assert messages == ["most sensitive first: [a, b]"]


def test_ranks_of_an_earlier_round_are_kept():
    rule = rank_settings({"select": "sensitivity", "ratio": 3, "negligible": 0})
    shares = choice(Network()).at(rule, say=silent).shares
    later = choice(Network(), shares=shares).at(rule, say=silent)
    assert later.shares == shares
    assert not later.sensitivity


def test_expected_accuracy_is_measured_with_every_layer_replaced():
    network, rule = Network(), rank_settings({"select": "ratio", "ratio": 3, "negligible": 0})
    work = choice(network)
    planned = work.at(rule, say=silent).layers
    expected = work.expected(planned, say=silent)
    assert expected.after == 90.0
    assert network.replaced[0].keys() == {"a", "b"}
    dense = tuple(
        PlannedLayer(layer.name, "svd", (), (), (1, 1), (1, 1), "small") for layer in LAYERS
    )
    assert work.expected(dense, say=silent) is None


def test_ranks_that_lose_too_much_are_rejected():
    network, rule = Network(after=12.0), rank_settings({"select": "ratio", "ratio": 3})
    work = choice(network)
    expected = work.expected(work.at(rule, say=silent).layers, say=silent)
    with pytest.raises(UserError, match=r"methods\.mine\.ranks: at these ranks .* 12\.0 %"):
        work.refuse_what_ruins(rule, expected, where="methods.mine.ranks", say=silent)
    harmless = Expected(1000, 90.0, 89.0, 10.0)
    work.refuse_what_ruins(rule, harmless, where="methods.mine.ranks", say=silent)


def planned(factorization, ranks, name="conv"):
    return PlannedLayer(name, factorization, ranks, ranks, (2, 1), (2, 1))


def test_slow_decompositions_are_not_tried_first():
    large = Layer(512, 512, (3, 3), padding=(1, 1), name="conv", input_map=(4, 4))
    small = Layer(64, 64, (3, 3), padding=(1, 1), name="conv", input_map=(8, 8))
    tables = {kind: LayerTable("net", (3, 32, 32), (layer,)) for kind, layer in
              {"large": large, "small": small}.items()}  # fmt: skip
    assert is_cheap(tables["large"], [planned("tucker2", (256, 256))])
    assert is_cheap(tables["small"], [planned("cp_tpm", (300,))])
    assert not is_cheap(tables["large"], [planned("cp_tpm", (500,))])
    assert not is_cheap(tables["large"], [planned("block_term2", (256, 256))])
