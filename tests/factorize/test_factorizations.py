"""Properties of our factorizations, besides the contract of `lowrank.testing`."""

import itertools

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer, sequence_macs, sequence_parameters
from lowrank.errors import UserError
from lowrank.factorize import (
    FACTORIZATIONS,
    decompose,
    get_factorization,
    grouped_sequence,
    one_group,
    reconstruct,
)

ALL = sorted(FACTORIZATIONS)
# Not with groups.
ONE_GROUP = {"remove_channels", "remove_channels_spatial_svd", "remove_channels_svd"}
CP = ["cp4", "cp_als", "cp_tpm"]
BLOCKS = {"block_term2": 2, "block_term4": 4, "block_term8": 8}


def layer_for(*, groups=1, inputs=4, outputs=6, **geometry):
    return PlainLayer(inputs * groups, outputs * groups, kernel=(3, 2), groups=groups, **geometry)


def weight_for(layer, seed=0):
    return np.random.default_rng(seed).standard_normal(layer.weight_shape).astype(np.float32)


def with_groups(groups):
    """Return each factorization with one group and, if it can, with several."""
    return [(1, name) for name in ALL] + [(groups, name) for name in ALL if name not in ONE_GROUP]


def full_ranks(factorization, layer):
    return factorization.full_ranks(one_group(layer))


def ranks_at(factorization, layer, share):
    """Return that share of the full ranks, adjusted to ranks that the factorization allows."""
    ranks = (max(1, round(share * rank)) for rank in full_ranks(factorization, layer))
    return factorization.consistent(one_group(layer), tuple(ranks))


@pytest.mark.parametrize(("groups", "name"), with_groups(3))
def test_factors_fit_the_sequence_and_its_cost(name, groups):
    factorization = get_factorization(name)
    layer = layer_for(groups=groups, bias=True, padding=(1, 1))
    ranks = ranks_at(factorization, layer, 0.8)
    bias = np.zeros(layer.out_channels)

    result = decompose(factorization, layer, weight_for(layer), bias, ranks)

    assert result.sequence == grouped_sequence(factorization, layer, ranks)
    for plain, kernel in zip(result.sequence, result.weights, strict=True):
        assert kernel.shape == plain.weight_shape
        assert kernel.dtype == np.float32
        assert kernel.flags.c_contiguous
    assert [plain.bias for plain in result.sequence[:-1]] == [False] * (len(result.sequence) - 1)
    assert result.sequence[-1].bias
    assert result.bias.dtype == np.float32
    # A selection of channels is not in the exported file.
    counted = zip(result.sequence, result.weights, strict=True)
    stored = sum(kernel.size for plain, kernel in counted if not plain.selects) + result.bias.size
    assert sequence_parameters(result.sequence) == stored


@pytest.mark.parametrize(("groups", "name"), with_groups(2))
def test_reconstruction_matches_the_reported_error(name, groups):
    factorization = get_factorization(name)
    layer = layer_for(groups=groups)
    weight = weight_for(layer)
    result = decompose(factorization, layer, weight, None, ranks_at(factorization, layer, 0.5))
    rebuilt = reconstruct(result.sequence, result.weights)
    assert rebuilt.shape == weight.shape
    error = np.linalg.norm(weight - rebuilt) / np.linalg.norm(weight)
    assert error == pytest.approx(result.relative_error, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("tucker2", (2, 3)),
        ("tucker1", (3,)),
        ("svd", (3,)),
        ("channel_svd", (3,)),
        ("spatial_svd", (6,)),
        *((name, (blocks, 3 * blocks)) for name, blocks in BLOCKS.items()),
    ],
)
def test_kernels_of_low_rank_are_found_exactly(name, ranks):
    factorization = get_factorization(name)
    layer = layer_for(inputs=10, outputs=12)
    generator = np.random.default_rng(3)
    output, core, inputs = (
        generator.standard_normal(shape) for shape in [(12, 3), (3, 2, *layer.kernel), (2, 10)]
    )
    # (T, R4) x (R4, R3, D, D) x (R3, S) -> (T, S, D, D)
    weight = np.einsum("tp,pqij,qs->tsij", output, core, inputs)
    assert decompose(factorization, layer, weight, None, ranks).relative_error < 1e-6


@pytest.mark.parametrize("name", CP)
def test_cp_has_no_spectrum(name):
    assert get_factorization(name).spectra(weight_for(layer_for())) == ()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("offset", [-1, 1])
def test_ranks_out_of_range_are_rejected(name, offset):
    factorization = get_factorization(name)
    layer = layer_for()
    ranks = [0 if offset < 0 else rank + 1 for rank in full_ranks(factorization, layer)]
    with pytest.raises(UserError, match=f"{factorization.rank_names[0]} rank of {name} is"):
        decompose(factorization, layer, weight_for(layer), None, ranks)


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_number_of_ranks_is_rejected(name):
    factorization = get_factorization(name)
    layer = layer_for()
    with pytest.raises(UserError, match="Give one number for each"):
        decompose(factorization, layer, weight_for(layer), None, [1, 1, 1, 1])


def test_weights_that_do_not_fit_are_rejected():
    layer = PlainLayer(4, 6)
    svd = get_factorization("svd")
    with pytest.raises(UserError, match=r"has shape \(6, 5\)"):
        decompose(svd, layer, np.zeros((6, 5)), None, [1])
    with pytest.raises(UserError, match="NaN or infinity"):
        decompose(svd, layer, np.full((6, 4), np.nan), None, [1])


def test_unknown_factorization_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'tucker2'"):
        get_factorization("tucker3")


@pytest.mark.parametrize("name", ["tucker2", *BLOCKS, *CP])
def test_unsuitable_layers_are_rejected(name):
    factorization, point = get_factorization(name), PlainLayer(16, 16)
    assert "use svd" in factorization.applies_to(point)
    with pytest.raises(UserError, match=f"{name} cannot factor this layer"):
        decompose(factorization, point, np.zeros(point.weight_shape), None, [8])


@pytest.mark.parametrize("name", sorted(set(ALL) - {"tucker2", "tensor_train", *BLOCKS, *CP}))
def test_closed_forms_accept_linear_layers(name):
    layer = PlainLayer(5, 7)
    weight = weight_for(layer)
    factorization = get_factorization(name)
    assert factorization.applies_to(layer) is None
    full = full_ranks(factorization, layer)
    assert decompose(factorization, layer, weight[:, :, 0, 0], None, full).relative_error < 1e-6


COSTS = {
    # For 10 -> 12 channels and a 3 x 2 window with stride 2 x 3 on an 8 x 9 map, which becomes
    # 3 x 3. Each entry has the ranks, the weights, and the multiply-accumulates of each layer. The
    # number of positions is 72 before the window, 27 after D_h x 1 only, and 9 after both.
    "tucker2": ((4, 5), 10 * 4 + 6 * 4 * 5 + 12 * 5, 72 * 40 + 9 * 120 + 9 * 60),
    "tucker1": ((4,), 6 * 10 * 4 + 12 * 4, 9 * 240 + 9 * 48),
    "svd": ((4,), 6 * 10 * 4 + 12 * 4, 9 * 240 + 9 * 48),
    "channel_svd": ((4,), 6 * 10 * 4 + 12 * 4, 9 * 240 + 9 * 48),
    "spatial_svd": ((4,), 3 * 10 * 4 + 2 * 12 * 4, 27 * 120 + 9 * 96),
    "tensor_train": (
        (4, 5, 6),
        10 * 4 + 3 * 4 * 5 + 2 * 5 * 6 + 6 * 12,
        72 * 40 + 27 * 60 + 9 * 60 + 9 * 72,
    ),
    "remove_channels": ((4,), 6 * 4 * 12, 9 * 288),
    "remove_channels_spatial_svd": ((3, 4), 3 * 3 * 4 + 2 * 12 * 4, 27 * 36 + 9 * 96),
    "remove_channels_svd": ((3, 4), 6 * 3 * 4 + 12 * 4, 9 * 72 + 9 * 48),
    "remove_branch": ((1,), 0, 0),
    "cp_tpm": ((4,), 10 * 4 + 6 * 4 + 12 * 4, 72 * 40 + 9 * 24 + 9 * 48),
    "cp_als": ((4,), 10 * 4 + 6 * 4 + 12 * 4, 72 * 40 + 9 * 24 + 9 * 48),
    "cp4": ((4,), (10 + 3 + 2 + 12) * 4, 72 * 40 + 27 * 12 + 9 * 8 + 9 * 48),
    "block_term2": ((4, 6), 10 * 4 + 6 * 4 * 6 // 2 + 12 * 6, 72 * 40 + 9 * 72 + 9 * 72),
    "block_term4": ((4, 8), 10 * 4 + 6 * 4 * 8 // 4 + 12 * 8, 72 * 40 + 9 * 48 + 9 * 96),
    "block_term8": ((8, 8), 10 * 8 + 6 * 8 * 8 // 8 + 12 * 8, 72 * 80 + 9 * 48 + 9 * 96),
}


@pytest.mark.parametrize(("groups", "name"), with_groups(2))
def test_costs_match_the_papers(name, groups):
    layer = layer_for(groups=groups, inputs=10, outputs=12, stride=(2, 3))
    ranks, weights, macs = COSTS[name]
    sequence = grouped_sequence(get_factorization(name), layer, ranks)
    assert sequence_parameters(sequence) == groups * weights
    assert sequence_macs(sequence, (8, 9)) == groups * macs


@pytest.mark.parametrize("name", ALL)
def test_kept_norm_for_every_choice_of_ranks(name):
    """The squared norm kept at all ranks, without a decomposition for each; exact for the SVD."""
    factorization, layer = get_factorization(name), layer_for(inputs=7, outputs=9)
    kernel = weight_for(layer)
    kept = factorization.kept(kernel)
    if name in [*CP, *BLOCKS, "tensor_train"]:
        assert kept is None
        return
    norm_squared = np.square(kernel, dtype=np.float64).sum()
    assert kept.shape == full_ranks(factorization, layer)
    assert kept.flat[-1] == pytest.approx(norm_squared)
    for ranks in itertools.product(*(range(1, full + 1, 2) for full in kept.shape)):
        if factorization.consistent(layer, ranks) != ranks:
            continue
        error = decompose(factorization, layer, kernel, None, ranks).relative_error
        expected = norm_squared * (1 - error**2)
        predicted = kept[tuple(rank - 1 for rank in ranks)]
        if name == "tucker2":
            # The sweeps improve slightly on the truncated core, even for noise.
            assert predicted <= expected * (1 + 1e-6)
            assert norm_squared - predicted < 1.3 * (norm_squared - expected) + 1e-6 * norm_squared
        elif len(ranks) > 1:
            # Channel removal together with factors: at most the sum of what each one loses.
            assert predicted <= expected + 1e-6 * norm_squared
        else:
            assert predicted == pytest.approx(expected, rel=1e-5)
