"""Ranks from a target."""

import itertools
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lowrank.core.layers import Layer, LayerTable
from lowrank.errors import UserError
from lowrank.factorize import (
    Moments,
    decompose,
    get_factorization,
    grouped_sequence,
    one_group,
)
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.bounds import bounds_of
from lowrank.ranks.curves import Curve, curve_of
from lowrank.ranks.knapsack import Trial, for_target, meet_target
from lowrank.ranks.latency_model import Latencies, grids_for
from lowrank.ranks.rule import Candidate
from lowrank.ranks.scale import cost_of, dense_cost
from lowrank.ranks.select import choose_ranks


def conv(name="conv", inputs=32, outputs=48, **fields):
    fields = {"kernel": (3, 3), "padding": (1, 1), "input_map": (8, 8)} | fields
    return Layer(inputs, outputs, name=name, **fields)


def linear(name="fc", inputs=64, outputs=40):
    return Layer(inputs, outputs, name=name, kind="linear")


def candidate_of(layer, factorization="tucker2", seed=0):
    """Return a candidate whose singular values decrease like those of trained layers."""
    generator = np.random.default_rng(seed)
    kernel = generator.standard_normal(layer.weight_shape)
    for axis in (0, 1):
        decreasing = np.geomspace(1, 0.05, kernel.shape[axis])
        basis = np.linalg.qr(generator.standard_normal((kernel.shape[axis],) * 2))[0]
        kernel = np.moveaxis(np.tensordot(basis * decreasing, kernel, (1, axis)), 0, axis)
    method = get_factorization(factorization)
    return Candidate(layer, kernel, method, method.full_ranks(one_group(layer)))


def settings_for(target=None, **fields):
    return rank_settings({"select": "budget", "target": target or {"macs": 0.3}} | fields)


def bounds_for(target):
    return bounds_of(settings_for(target), {})


def first_bound(target=None):
    return bounds_for(target)[0]


def curve_for(candidate, settings, moments=None):
    return curve_of(candidate, settings, bounds_of(settings, {}), moments)


def shares_for(table, candidates, settings, measured, **options):
    trials = [partial(Trial, candidate) for candidate in candidates]
    return for_target(table, trials, settings, bounds_of(settings, {}), measured, **options)


def error_squared(candidate, ranks, moments=None):
    result = decompose(
        candidate.factorization, candidate.layer, candidate.kernel, None, ranks, moments
    )
    return (result.relative_error if moments is None else result.output_error) ** 2


@pytest.mark.parametrize("factorization", ["tucker1", "channel_svd", "spatial_svd"])
@pytest.mark.parametrize("groups", [1, 2])
def test_left_out_is_the_error(factorization, groups):
    candidate = candidate_of(conv(inputs=32, outputs=16 * groups, groups=groups), factorization)
    curve = curve_for(candidate, settings_for())
    for index in range(0, len(curve.ranks), 5):
        expected = error_squared(candidate, curve.ranks[index])
        assert np.exp(curve.left_out[index]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_iteration_leaves_out_slightly_less():
    candidate = candidate_of(conv())
    curve = curve_for(candidate, settings_for(multiple_of=4))
    for index in range(0, len(curve.ranks), 7):
        error = error_squared(candidate, curve.ranks[index])
        assert 0.8 * np.exp(curve.left_out[index]) < error <= 1.0001 * np.exp(curve.left_out[index])


@pytest.mark.parametrize("factorization", ["channel_svd", "tucker2", "spatial_svd"])
def test_with_moments_left_out_is_the_output_error(factorization):
    layer = conv()
    candidate = candidate_of(layer, factorization)
    patches = np.random.default_rng(1).standard_normal((2000, 32 * 9)) * np.geomspace(1, 0.1, 288)
    moments = Moments(patches.mean(0)[None], (patches.T @ patches / 2000)[None], 2000)
    curve = curve_for(candidate, settings_for(multiple_of=4), moments)
    errors = [error_squared(candidate, ranks, moments) for ranks in curve.ranks[::6]]
    left_out = np.exp(curve.left_out[::6])
    if factorization == "channel_svd":
        # The first layer contains the full window, so the result is exact.
        assert left_out == pytest.approx(errors, rel=1e-2)
    assert np.corrcoef(np.log(errors), curve.left_out[::6])[0, 1] > 0.98


def test_every_choice_is_worthwhile():
    curve = curve_for(candidate_of(conv()), settings_for())
    assert (np.diff(curve.left_out) >= 0).all()
    assert (np.diff(curve.costs[:, 0]) < 0).all()
    layer, method = curve.layer, curve.factorization
    assert [cost_of(layer, method, ranks, "macs") for ranks in curve.ranks] == list(
        curve.costs[:, 0]
    )
    assert curve.costs.max() < layer.dense_macs


@pytest.mark.parametrize("factorization", ["tucker2", "cp_tpm", "block_term4"])
def test_ranks_are_the_requested_multiples(factorization):
    candidate = candidate_of(conv(inputs=64, outputs=64), factorization)
    curve = curve_for(candidate, settings_for(multiple_of=8, minimum=10))
    assert {rank % 8 for ranks in curve.ranks for rank in ranks} == {0}
    assert min(min(ranks) for ranks in curve.ranks) == 16


def test_a_layer_that_no_ranks_make_cheaper_has_no_curve():
    assert curve_for(candidate_of(conv(inputs=2, outputs=2)), settings_for(minimum=2)) is None


@pytest.mark.parametrize("factorization", ["tucker2", "cp4"])
def test_trials_lie_around_the_target(factorization):
    curve = curve_for(candidate_of(conv(inputs=64, outputs=64), factorization), settings_for())
    trials = curve.trials(first_bound(), 0.3)
    assert len(trials) == 3
    shares = [
        cost_of(curve.layer, curve.factorization, ranks, "macs") / curve.layer.dense_macs
        for ranks in trials
    ]
    assert shares == pytest.approx([0.3**0.5, 0.3, 0.3**1.5], rel=0.15)


def test_losses_match_the_measurements_and_never_decrease():
    curve = curve_for(candidate_of(conv()), settings_for())
    trials = curve.trials(first_bound(), 0.3)
    losses = curve.losses(dict(zip(trials, (0.01, 0.1, 0.2), strict=True)))
    assert [losses[curve.ranks.index(ranks)] for ranks in trials] == pytest.approx([0.01, 0.1, 0.2])
    assert (np.diff(losses) >= 0).all()
    # Measurement noise: a better approximation was measured as a worse one.
    crossed = curve.losses(dict(zip(trials, (0.1, 0.01, 0.2), strict=True)))
    assert (np.diff(crossed) >= 0).all()


def test_with_one_trial_losses_are_proportional_to_the_error():
    curve = curve_for(candidate_of(conv()), settings_for())
    middle = len(curve.ranks) // 2
    losses = curve.losses({curve.ranks[middle]: 0.5})
    expected = 0.5 * np.exp(curve.left_out - curve.left_out[middle])
    assert losses == pytest.approx(expected)


def random_curve(layer, generator, count=6):
    costs = np.sort(generator.uniform(0.05, 0.95, count))[::-1] * layer.dense_macs
    losses = np.sort(generator.uniform(0, 1, count))
    ranks = tuple((int(index) + 1,) for index in range(count))
    method = get_factorization("channel_svd")
    return Curve(layer, method, ranks, costs[:, None], np.log(losses)), losses


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_optimal(seed):
    generator = np.random.default_rng(seed)
    layers = [conv(name, outputs=16 * (index + 1)) for index, name in enumerate("abcd")]
    table = LayerTable("net", (3, 8, 8), (*layers, linear()))
    curves = [random_curve(layer, generator) for layer in layers]
    limit = float(generator.uniform(0.45, 0.8))
    shares = meet_target(table, curves, bounds_for({"macs": limit}))
    total = sum(dense_cost(layer, "macs") for layer in table.layers)
    options = [
        [(layer.dense_macs, 0.0), *zip(curve.costs[:, 0], losses, strict=True)]
        for layer, (curve, losses) in zip(layers, curves, strict=True)
    ]
    best = min(
        sum(loss for _, loss in choice)
        for choice in itertools.product(*options)
        if sum(cost for cost, _ in choice) + linear().dense_macs <= limit * total
    )
    assert sum(share.loss for share in shares.values()) == pytest.approx(best, rel=1e-3)


def quadratic(candidates, weights):
    """Return a function that computes losses: for each layer, a weight times its squared error."""
    kernels = {candidate.layer.name: candidate.kernel for candidate in candidates}

    def measured(replacements):
        return [weights[name] * factors.relative_error**2 for name, factors in replacements]

    assert kernels.keys() == weights.keys()
    return measured


@pytest.mark.parametrize("target", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_the_target_is_met_and_hardly_undercut(target, cost):
    candidates = [candidate_of(conv(name, 64, 64), seed=index) for index, name in enumerate("abc")]
    table = LayerTable("net", (3, 8, 8), tuple(candidate.layer for candidate in candidates))
    settings = settings_for({cost: target})
    measured = quadratic(candidates, {"a": 1.0, "b": 1.0, "c": 30.0})
    shares = shares_for(table, candidates, settings, measured)
    ranks = {name: share.ranks for name, share in shares.items()}
    planned = [
        choose_ranks(candidate.layer, candidate.kernel, "tucker2", settings, shared=ranks)
        for candidate in candidates
    ]
    reached = sum(getattr(layer, cost)[1] for layer in planned)
    total = sum(getattr(layer, cost)[0] for layer in planned)
    assert 0.98 * target <= reached / total <= target
    # The layer with the largest loss keeps most.
    assert planned[2].macs[1] > 1.2 * planned[0].macs[1]


def test_a_layer_may_get_another_factorization():
    """One kernel is a sum of products of a column and a row; the other has low Tucker ranks."""
    generator = np.random.default_rng(0)
    separable = np.einsum("rtj,rsi->tsij", *generator.standard_normal((2, 4, 48, 3)))
    narrow = np.einsum(
        "ta,abij,bs->tsij",
        generator.standard_normal((48, 4)),
        generator.standard_normal((4, 4, 3, 3)),
        generator.standard_normal((4, 48)),
    )
    kernels = {"a": separable, "b": narrow}
    candidates = [
        replace(candidate_of(conv(name, 48, 48), factorization), kernel=kernel)
        for name, kernel in kernels.items()
        for factorization in ("tucker2", "spatial_svd")
    ]
    table = LayerTable("net", (3, 8, 8), (conv("a", 48, 48), conv("b", 48, 48)))
    measured = quadratic(candidates, {"a": 1.0, "b": 1.0})
    settings = settings_for({"macs": 0.08})
    shares = shares_for(table, candidates, settings, measured)
    assert {name: share.factorization for name, share in shares.items()} == {
        "a": "spatial_svd",
        "b": "tucker2",
    }


def test_a_layer_with_a_large_loss_stays_dense():
    candidates = [candidate_of(conv(name, 64, 64), seed=index) for index, name in enumerate("ab")]
    table = LayerTable("net", (3, 8, 8), tuple(candidate.layer for candidate in candidates))
    settings = settings_for({"macs": 0.7})
    measured = quadratic(candidates, {"a": 1e4, "b": 1e-3})
    shares = shares_for(table, candidates, settings, measured)
    assert shares["a"].ranks == ()
    ranks = {name: share.ranks for name, share in shares.items()}
    layer, kernel = candidates[0].layer, candidates[0].kernel
    planned = choose_ranks(layer, kernel, "tucker2", settings, shared=ranks)
    assert planned.dense_because == "the target is met best without factoring it"


def test_an_underestimated_loss_leads_to_a_new_choice():
    """Outside the trials, one layer loses far more than its curve predicts."""
    candidates = [candidate_of(conv(name, 64, 64), seed=index) for index, name in enumerate("ab")]
    table = LayerTable("net", (3, 8, 8), tuple(candidate.layer for candidate in candidates))
    settings = settings_for({"macs": 0.4})
    limit = min(
        error_squared(candidates[0], ranks)
        for ranks in curve_for(candidates[0], settings).trials(first_bound({"macs": 0.4}), 0.4)[-1:]
    )

    def measured(replacements):
        for name, factors in replacements:
            error = factors.relative_error**2
            cliff = 100.0 if name == "a" and error > 1.2 * limit else 0.0
            yield {"a": 0.01, "b": 1.0}[name] * error + cliff

    shares = shares_for(table, candidates, settings, measured)
    (loss,) = measured([Trial(candidates[0]).at(shares["a"].ranks)])
    assert loss == shares["a"].loss < 1


def test_measurements_are_reported():
    candidate, messages = candidate_of(conv()), []
    table = LayerTable("net", (3, 8, 8), (candidate.layer,))
    measured = quadratic([candidate], {"conv": 1.0})
    shares_for(table, [candidate], settings_for(), measured, say=messages.append)
    assert len(messages) == 3
    assert all(
        re.fullmatch(r"conv alone, with tucker2 at \d+, \d+: loss of 0\.\d+ nats", message)
        for message in messages
    )


def test_an_impossible_target_is_reported_with_the_nearest():
    candidate = candidate_of(conv())
    fixed = replace(conv("odd", 32, 48), not_factored="it is transposed")
    table = LayerTable("net", (3, 8, 8), (candidate.layer, fixed))
    measured = quadratic([candidate], {"conv": 1.0})
    text = r"target\.macs: 0\.1 of .* possible target is 0\.5\d+.*odd \(0\.5\d+, stays dense"
    with pytest.raises(UserError, match=text):
        shares_for(table, [candidate], settings_for({"macs": 0.1}), measured)


def test_conflicting_targets_are_reported():
    """One choice has few weights and many MACs, the other few MACs and many weights."""
    layer = conv(inputs=64, outputs=64)
    method = get_factorization("channel_svd")
    costs = np.array(
        [[0.9 * layer.dense_macs, 0.1 * layer.parameters], [100.0, 0.9 * layer.parameters]]
    )
    curve = Curve(layer, method, ((1,), (2,)), costs, np.log([0.1, 0.2]))
    table = LayerTable("net", (3, 8, 8), (layer,))
    bounds = bounds_for({"macs": 0.5, "parameters": 0.5})
    with pytest.raises(UserError, match=r"macs 0\.5 and parameters 0\.5 cannot be met together"):
        meet_target(table, [(curve, np.array([0.1, 0.2]))], bounds)


def latencies_with_cheap_small_ranks(layer):
    """Return latencies of a device on which windows with at most 8 inputs cost almost nothing.

    All other windows take the same time.
    """
    grids = grids_for(
        [([layer], layer.input_map)]
        + [
            (grouped_sequence(get_factorization("tucker2"), layer, ranks), layer.input_map)
            for ranks in ((1, 1), get_factorization("tucker2").full_ranks(layer))
        ]
    )

    def measure(layers):
        return [
            0.01 if plain.kernel == (1, 1) or plain.in_channels <= 8 else 1.0 for plain, _ in layers
        ]

    return Latencies.measured(1.5, 0.5, grids, measure)


def test_a_target_of_milliseconds_uses_measured_latencies():
    candidate = candidate_of(conv(inputs=64, outputs=64))
    table = LayerTable("net", (3, 8, 8), (candidate.layer,))
    latencies = latencies_with_cheap_small_ranks(candidate.layer)
    settings = settings_for({"latency_ms": {"board": 0.5}})
    bounds = bounds_of(settings, {"board": latencies})
    assert bounds[0].of_network(table) == pytest.approx(1.5)
    measured = quadratic([candidate], {"conv": 1.0})
    trials = [partial(Trial, candidate)]
    (share,) = for_target(table, trials, settings, bounds, measured).values()
    # The limit is 0.75 ms. No ranks can change 0.5 ms of it.
    cost = bounds[0].of(candidate.layer, candidate.factorization, share.ranks)
    assert 0.2 < cost <= 0.25
    # Few inputs and many outputs are cheap on this device, although they cost many MACs.
    assert share.ranks[0] < 30 < share.ranks[1]


def test_a_device_without_measurements():
    with pytest.raises(
        UserError, match=r"latency_ms\.board: no latencies were measured on 'board'"
    ):
        bounds_for({"latency_ms": {"board": 0.5}})


def test_without_images_the_error_names_what_is_missing():
    candidate = candidate_of(conv())
    with pytest.raises(UserError, match=r"'budget' needs losses, .*images"):
        choose_ranks(candidate.layer, candidate.kernel, "tucker2", settings_for())
