"""Each rank rule on its own."""

import numpy as np
import pytest

from lowrank.core.layers import Layer
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization, one_group
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.rule import RULES, mistake_in
from lowrank.ranks.rules.energy import Energy
from lowrank.ranks.rules.sensitivity import shared_out
from lowrank.ranks.scale import cost_of, dense_cost, ranks_of_size, ranks_within
from lowrank.ranks.select import choose_ranks


def conv(name="conv", inputs=32, outputs=48, **fields):
    fields = {"kernel": (3, 3), "padding": (1, 1), "input_map": (8, 8)} | fields
    return Layer(inputs, outputs, name=name, **fields)


def linear(name="fc", inputs=64, outputs=40):
    return Layer(inputs, outputs, name=name, kind="linear")


def kernel_for(layer, seed=0):
    return np.random.default_rng(seed).standard_normal(layer.weight_shape)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_energy_keeps_its_share_and_no_more(share):
    layer = linear()
    matrix = kernel_for(layer)[:, :, 0, 0] * np.geomspace(1, 1e-3, 64)
    settings = {"select": "energy", "energy": share}
    (rank,) = choose_ranks(layer, matrix, "svd", settings).chosen
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    assert squares[:rank].sum() >= share * squares.sum() > squares[: rank - 1].sum()


def test_energy_of_one_is_the_full_rank_of_the_matrix():
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((40, 5)) @ generator.standard_normal((5, 64))
    settings = {"select": "energy", "energy": 1.0}
    assert choose_ranks(linear(), matrix, "svd", settings).chosen == (5,)


def test_energy_leaves_a_zero_kernel_dense():
    planned = choose_ranks(conv(), np.zeros((48, 32, 3, 3)), "tucker2", {"select": "energy"})
    assert planned.is_dense


@pytest.mark.parametrize("name", ["tucker2", "tucker1", "spatial_svd", "cp_tpm", "cp4"])
@pytest.mark.parametrize("ratio", [1.5, 3, 8])
@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_ratio_gives_the_largest_ranks_within_the_limit(name, ratio, cost):
    layer, method = conv(stride=(2, 2), bias=True), get_factorization(name)
    settings = {"select": "ratio", "ratio": ratio, "cost": cost}
    planned = choose_ranks(layer, kernel_for(layer), name, settings)
    limit = dense_cost(layer, cost) / ratio
    assert cost_of(layer, method, planned.ranks, cost) <= limit
    next_ranks = tuple(rank + 1 for rank in planned.ranks)
    assert cost_of(layer, method, next_ranks, cost) > limit


def test_ratio_keeps_the_proportion_of_the_full_ranks():
    ranks = choose_ranks(conv(), kernel_for(conv()), "tucker2", {"select": "ratio"}).ranks
    assert ranks[1] / ranks[0] == pytest.approx(48 / 32, rel=0.1)


def test_an_impossible_ratio_gives_ranks_of_one():
    settings = {"select": "ratio", "ratio": 1e6}
    assert choose_ranks(conv(), kernel_for(conv()), "tucker2", settings).ranks == (1, 1)


@pytest.mark.parametrize("size", [0.01, 1, 7.3, 20, 1e5])
def test_ranks_of_a_size_stay_within_bounds(size):
    ranks = ranks_of_size(conv(), get_factorization("tucker2"), (32, 48), size)
    assert all(1 <= rank <= full for rank, full in zip(ranks, (32, 48), strict=True))
    if 2 < size < 30:
        assert np.sqrt(np.prod(ranks)) == pytest.approx(size, rel=0.15)


def test_a_loose_limit_gives_full_ranks():
    layer, method = conv(), get_factorization("tucker2")
    assert ranks_within(layer, method, (32, 48), limit=1e12, cost="macs") == (32, 48)


def test_fixed_uses_the_table_and_leaves_other_layers_dense():
    settings = {"select": "fixed", "table": {"conv": (5, 6)}}
    assert choose_ranks(conv(), kernel_for(conv()), "tucker2", settings).ranks == (5, 6)
    other = choose_ranks(conv("other"), kernel_for(conv()), "tucker2", settings)
    assert other.dense_because == "the table of ranks does not name it"


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((5,), r"ranks\.table\.conv: found 1 ranks, but tucker2 needs 2 \(input, output\)"),
        ((33, 6), r"ranks\.table\.conv: the input rank is 33; expected at most 32"),
        ((5, 49), r"ranks\.table\.conv: the output rank is 49; expected at most 48"),
    ],
)
def test_impossible_fixed_ranks_are_rejected(ranks, expected):
    with pytest.raises(UserError, match=expected):
        choose_ranks(
            conv(), kernel_for(conv()), "tucker2", {"select": "fixed", "table": {"conv": ranks}}
        )


@pytest.mark.parametrize("rule", ["vbmf", "energy"])
def test_rules_that_need_an_unfolding_reject_cp(rule):
    with pytest.raises(UserError, match=f"'{rule}' chooses ranks by .*cp_tpm has no unfolding"):
        choose_ranks(conv(), kernel_for(conv()), "cp_tpm", {"select": rule})


def candidates(*layers):
    methods = [get_factorization("svd" if layer.kind == "linear" else "cp_tpm") for layer in layers]
    return [
        (layer, method, method.full_ranks(one_group(layer)))
        for layer, method in zip(layers, methods, strict=True)
    ]


def test_ranks_are_shared_out_by_sensitivity():
    layers = [conv("a", 64, 64), conv("b", 64, 64), linear("c", 256, 256), linear("d", 256, 256)]
    losses = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0}
    settings = rank_settings({"select": "sensitivity", "ratio": 4})
    shares, ranks = shared_out(candidates(*layers), losses, settings)
    assert shares == {"a": 0.25, "b": 0.75, "c": 0.5, "d": 0.5}
    assert ranks["b"][0] == pytest.approx(3 * ranks["a"][0], abs=2)
    assert ranks["c"] == ranks["d"]
    for kind in (layers[:2], layers[2:]):
        dense = sum(layer.dense_macs for layer in kind)
        compressed = sum(
            cost_of(layer, method, ranks[layer.name], "macs")
            for layer, method, _ in candidates(*kind)
        )
        assert compressed <= dense / 4
        assert compressed > 0.97 * dense / 4


def test_a_very_sensitive_layer_counts_as_dense():
    layers = [conv("a", 64, 64), conv("b", 64, 64)]
    settings = rank_settings({"select": "sensitivity", "ratio": 1.8})
    _, ranks = shared_out(candidates(*layers), {"a": 100.0, "b": 1.0}, settings)
    planned = [
        choose_ranks(
            layer,
            kernel_for(layer),
            method,
            settings,
            shared=ranks,
        )
        for layer, method, _ in candidates(*layers)
    ]
    assert planned[0].is_dense
    total = sum(layer.macs[1] for layer in planned)
    assert total <= 2 * layers[0].dense_macs / 1.8


def test_sensitivity_outside_the_workflow_is_rejected():
    with pytest.raises(UserError, match="needs losses, which the step select_ranks measures"):
        choose_ranks(conv(), kernel_for(conv()), "cp_tpm", {"select": "sensitivity"})


def test_grouped_layers_get_the_largest_rank_by_energy():
    generator = np.random.default_rng(0)
    parts = [
        generator.standard_normal((24, rank)) @ generator.standard_normal((rank, 16))
        for rank in (2, 5)
    ]
    kernel = np.concatenate(parts)[:, :, None, None]
    layer = Layer(32, 48, groups=2, name="grouped")
    settings = {"select": "energy", "energy": 1.0}
    planned = choose_ranks(layer, kernel, "svd", settings)
    assert planned.chosen == (5,)
    result = decompose(get_factorization("svd"), layer, kernel, None, planned.ranks)
    assert result.relative_error < 1e-6


def test_a_rule_for_all_layers_without_its_method_is_a_mistake():
    class Unfinished(Energy):
        looks_at_all_layers = True

    assert mistake_in(Unfinished()) == (
        "has `looks_at_all_layers = True` and no `share_out`; expected that method"
    )
    assert [mistake_in(RULES.get(name)) for name in RULES] == [None] * len(RULES.names())
