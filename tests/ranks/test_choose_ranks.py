"""Ranks from weights, their adjustments, and the reasons for a layer to stay dense."""

import numpy as np
import pytest

from lowrank.core.layers import Layer, sequence_macs, sequence_parameters
from lowrank.core.plans import Factored
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization, grouped_sequence, reconstruct
from lowrank.ranks.select import choose_ranks


def conv(inputs=32, outputs=48, **fields):
    fields = {"name": "conv", "kernel": (3, 3), "padding": (1, 1), "input_map": (8, 8)} | fields
    return Layer(inputs, outputs, **fields)


def planted_kernel(outputs, inputs, output_rank, input_rank, noise=0.05, seed=0):
    generator = np.random.default_rng(seed)
    left, core, right = (
        generator.standard_normal(shape)
        for shape in [(outputs, output_rank), (output_rank, input_rank, 3, 3), (input_rank, inputs)]
    )
    # (T, R4) x (R4, R3, D, D) x (R3, S) -> (T, S, D, D)
    kernel = np.einsum("tp,pqij,qs->tsij", left, core, right)
    return kernel + noise * generator.standard_normal(kernel.shape)


def test_planted_ranks_are_chosen():
    planned = choose_ranks(conv(), planted_kernel(48, 32, 7, 4), "tucker2", {"select": "vbmf"})
    assert planned.ranks == planned.chosen == (4, 7)
    assert planned.notes == ()
    assert not planned.is_dense


def test_costs_match_the_sequence():
    layer = conv(bias=True, stride=(2, 2))
    planned = choose_ranks(layer, planted_kernel(48, 32, 7, 4), "tucker2", {})
    sequence = grouped_sequence(get_factorization("tucker2"), layer, planned.ranks)
    assert planned.parameters == (layer.parameters, sequence_parameters(sequence))
    assert planned.macs == (layer.dense_macs, sequence_macs(sequence, (8, 8)))


def test_groups_share_the_largest_rank():
    kernel = np.concatenate(
        [planted_kernel(48, 32, 7, 4, seed=0), planted_kernel(48, 32, 5, 6, seed=1)]
    )
    planned = choose_ranks(conv(64, 96, groups=2), kernel, "tucker2", {})
    assert planned.ranks == (6, 7)


@pytest.mark.parametrize(
    ("weaken", "expected"), [(0, (4, 7)), (0.1, (7, 12)), (0.5, (18, 28)), (1, (32, 48))]
)
def test_weaken_moves_ranks_toward_full_ranks(weaken, expected):
    planned = choose_ranks(conv(), planted_kernel(48, 32, 7, 4), "tucker2", {"weaken": weaken})
    assert planned.chosen == expected


def test_weaken_is_robust_to_floating_point_rounding():
    layer = Layer(33, 40, name="fc", kind="linear")
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((40, 3)) @ generator.standard_normal((3, 33))
    matrix += 0.01 * generator.standard_normal(matrix.shape)
    # In floating point, 3 + 0.1 x 30 is 6.000000000000001.
    assert choose_ranks(layer, matrix, "svd", {"weaken": 0.1}).chosen == (6,)


def test_a_layer_of_noise_stays_dense_with_the_reason():
    kernel = np.random.default_rng(0).standard_normal((48, 32, 3, 3))
    planned = choose_ranks(conv(), kernel, "tucker2", {})
    assert planned.chosen == (0, 0)
    assert planned.ranks == ()
    assert planned.dense_because == "vbmf finds only noise in its weights (rank 0)"
    assert planned.macs[0] == planned.macs[1]
    # With higher ranks there is something to factor.
    assert not choose_ranks(conv(), kernel, "tucker2", {"weaken": 0.1}).is_dense


@pytest.mark.parametrize(
    ("multiple_of", "minimum", "expected"),
    [(4, 1, (4, 8)), (16, 1, (16, 16)), (5, 1, (5, 5)), (64, 1, (4, 7)), (8, 9, (16, 16))],
)
def test_ranks_are_rounded_to_multiples(multiple_of, minimum, expected):
    settings = {"multiple_of": multiple_of, "minimum": minimum}
    planned = choose_ranks(conv(), planted_kernel(48, 32, 7, 4), "tucker2", settings)
    assert planned.ranks == expected


@pytest.mark.parametrize(
    ("rounding", "expected"), [("down", (4, 4)), ("nearest", (4, 8)), ("up", (4, 8))]
)
def test_ranks_are_rounded_in_the_given_direction(rounding, expected):
    settings = {"multiple_of": 4, "rounding": rounding}
    planned = choose_ranks(conv(), planted_kernel(48, 32, 7, 4), "tucker2", settings)
    assert planned.ranks == expected
    # In any direction, ranks stay between the minimum and full rank.
    settings = {"select": "fixed", "table": {"conv": [1, 47]}, "multiple_of": 16, "minimum": 3}
    planned = choose_ranks(
        conv(), planted_kernel(48, 32, 7, 4), "tucker2", settings | {"rounding": rounding}
    )
    assert planned.ranks == (16, 32 if rounding == "down" else 48)


def test_rounding_never_exceeds_the_full_rank():
    planned = choose_ranks(
        conv(), planted_kernel(48, 32, 7, 4), "tucker2", {"weaken": 1, "multiple_of": 20}
    )
    assert planned.ranks == (20, 40)
    assert "input rank 32 rounded to 20, a multiple of 20" in planned.notes
    svd = choose_ranks(
        Layer(40, 48, name="fc", kind="linear"),
        np.random.default_rng(0).standard_normal((48, 40)),
        "svd",
        {"select": "fixed", "table": {"fc": [7]}, "multiple_of": 4},
    )
    assert svd.notes == ("rank 7 rounded to 8, a multiple of 4",)


def test_ranks_that_the_other_rank_makes_useless_are_lowered():
    generator = np.random.default_rng(0)
    kernel = np.einsum(
        "tp,psij->tsij",
        generator.standard_normal((48, 1)),
        generator.standard_normal((1, 32, 3, 3)),
    )
    planned = choose_ranks(conv(), kernel, "tucker2", {"minimum": 1})
    assert planned.ranks[0] <= 9 * planned.ranks[1]
    kernel = planted_kernel(48, 32, 1, 1)
    planned = choose_ranks(conv(3, 48), kernel[:, :3], "tucker2", {"weaken": 0.5})
    assert planned.ranks[1] <= 9 * planned.ranks[0]


def test_a_layer_whose_factors_cost_more_stays_dense():
    layer = conv(3, 4)
    kernel = np.random.default_rng(0).standard_normal(layer.weight_shape)
    planned = choose_ranks(layer, kernel, "tucker2", {"weaken": 1})
    assert planned.is_dense
    assert planned.dense_because == (
        "its factors at ranks (3, 4) would need 8,512 MACs, the layer needs 6,912"
    )
    assert planned.ranks == (3, 4)
    assert planned.macs == (6912, 6912)


def test_an_unsuitable_layer_stays_dense_with_the_reason():
    pointwise = conv(kernel=(1, 1), padding=(0, 0))
    planned = choose_ranks(pointwise, np.zeros((48, 32, 1, 1)), "tucker2", {})
    assert planned.dense_because.startswith("its kernel is 1 x 1")
    assert planned.ranks == ()
    # The weight of a transposed convolution has its channels in the other order.
    transposed = conv(kind="transposed_conv", not_factored="it is transposed")
    planned = choose_ranks(transposed, np.zeros((32, 48, 3, 3)), "tucker2", {})
    assert planned.dense_because == "it is transposed"
    assert planned.macs == (transposed.dense_macs, transposed.dense_macs)


def test_linear_layers_accept_matrices():
    layer = Layer(64, 40, name="fc", kind="linear", bias=True)
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((40, 5)) @ generator.standard_normal((5, 64))
    matrix += 0.1 * generator.standard_normal(matrix.shape)
    planned = choose_ranks(layer, matrix.astype(np.float32), "svd", {})
    assert planned.ranks == (5,)
    assert planned.parameters == (64 * 40 + 40, 5 * (64 + 40) + 40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "vmbf"}, r"ranks: `select` is 'vmbf', .* \(did you mean 'vbmf'\?\)"),
        ({"weaken": 1.5}, "ranks: `weaken` is 1.5, expected at least 0 and at most 1"),
        ({"multiple_of": 0}, "ranks: `multiple_of` is 0"),
        ({"minimum": 0}, "ranks: `minimum` is 0"),
        ({"enrgy": 0.5}, r"unknown parameter `enrgy` \(did you mean 'energy'\?\)"),
        ({"select": "fixed"}, "`select: fixed` needs `table`"),
        ({"table": {"conv": (1, 1)}}, "`table` belongs to `select: fixed`, not to `select: vbmf`"),
    ],
)
def test_settings_out_of_range_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        choose_ranks(conv(), np.zeros((48, 32, 3, 3)), "tucker2", settings)


def test_weights_that_are_not_finite_are_rejected_with_the_layer():
    with pytest.raises(UserError, match="layer 'conv' contains NaN"):
        choose_ranks(conv(), np.full((48, 32, 3, 3), np.nan), "tucker2", {})


@pytest.mark.parametrize("rule", ["energy", "ratio", "fixed"])
def test_stages_lower_the_ranks_by_equal_factors(rule):
    settings = {"select": rule} | {"fixed": {"table": {"conv": (4, 8)}}}.get(rule, {})
    kernel = planted_kernel(48, 32, 7, 4)
    at_once = choose_ranks(conv(), kernel, "tucker2", settings)
    first = choose_ranks(conv(), kernel, "tucker2", settings, stages_left=2)
    for target, rank, full in zip(at_once.ranks, first.ranks, (32, 48), strict=True):
        assert rank == round((target * full) ** 0.5)


def factored_at(ranks, kernel, layer):
    method = get_factorization("tucker2")
    result = decompose(method, layer, kernel, None, ranks)
    factored = Factored("tucker2", ranks, result.relative_error, result.sequence)
    return factored, reconstruct(result.sequence, result.weights)


def test_a_factored_layer_continues_from_its_current_ranks():
    layer = conv()
    factored, kernel = factored_at((20, 30), planted_kernel(48, 32, 7, 4), layer)
    # A quarter of the distance from (4, 7) to (20, 30), not to (32, 48).
    planned = choose_ranks(layer, kernel, "tucker2", {"weaken": 0.25}, factored=factored)
    assert planned.chosen == (8, 13)
    assert planned.macs[0] == layer.dense_macs
    full = choose_ranks(
        layer, kernel, "tucker2", {"select": "energy", "energy": 1}, factored=factored
    )
    assert full.is_dense
    assert full.macs[1] == sequence_macs(factored.sequence, layer.input_map)
    assert full.parameters[1] == sequence_parameters(factored.sequence)


def test_noise_in_a_core_is_still_found():
    # The product of the factors has no noise outside the core. In the full kernel, EVBMF would find
    # only signal.
    layer = conv()
    factored, kernel = factored_at((20, 30), planted_kernel(48, 32, 7, 4, noise=0.5), layer)
    assert choose_ranks(layer, kernel, "tucker2", {}, factored=factored).chosen == (4, 7)
    assert choose_ranks(layer, kernel, "tucker2", {}).chosen == (20, 30)


def test_another_factorization_of_a_factored_layer_is_rejected():
    factored, kernel = factored_at((20, 30), planted_kernel(48, 32, 7, 4), conv())
    with pytest.raises(UserError, match="'conv' is already factored by tucker2"):
        choose_ranks(conv(), kernel, "tucker1", {}, factored=factored)
