"""What holds for every factorization in the registry."""

import itertools

import numpy as np
import pytest
import torch

from lowrank.errors import UserError
from lowrank.factorize import (
    FACTORIZATIONS,
    decompose,
    get_factorization,
    grouped_sequence,
    one_group,
    reconstruct,
)
from lowrank.plan import PlainLayer, sequence_macs, sequence_parameters

ALL = sorted(FACTORIZATIONS)
WINDOWED = sorted({"tucker1", "tucker2"} & set(ALL))
GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 0)},
    {"dilation": (2, 1), "padding": (2, 1)},
    {"stride": (2, 3), "padding": (0, 2), "dilation": (1, 2)},
]


def window_of(name):
    return (1, 1) if name == "svd" else (3, 2)


def layer_for(name, *, groups=1, inputs=4, outputs=6, **geometry):
    return PlainLayer(
        inputs * groups, outputs * groups, kernel=window_of(name), groups=groups, **geometry
    )


def weight_for(layer, seed=0):
    return np.random.default_rng(seed).standard_normal(layer.weight_shape).astype(np.float32)


def convolve(images, layer, weight, bias):
    return torch.nn.functional.conv2d(
        images,
        torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def full_ranks(factorization, layer):
    return factorization.full_ranks(one_group(layer))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (7, 3)])
def test_full_rank_equals_the_dense_layer(name, geometry, groups, has_bias, inputs, outputs):
    factorization = get_factorization(name)
    layer = layer_for(
        name, groups=groups, inputs=inputs, outputs=outputs, bias=has_bias, **geometry
    )
    weight = weight_for(layer)
    bias = np.arange(layer.out_channels, dtype=np.float32) if has_bias else None

    result = decompose(factorization, layer, weight, bias, full_ranks(factorization, layer))

    images = torch.from_numpy(
        np.random.default_rng(1).standard_normal((2, layer.in_channels, 7, 9)).astype(np.float32)
    )
    output = images
    biases = [None] * (len(result.sequence) - 1) + [result.bias]
    for plain, kernel, plain_bias in zip(result.sequence, result.weights, biases, strict=True):
        output = convolve(output, plain, kernel, plain_bias)
    torch.testing.assert_close(output, convolve(images, layer, weight, bias), rtol=0, atol=1e-4)
    assert result.relative_error < 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("groups", [1, 3])
def test_factors_fit_the_sequence_and_its_cost(name, groups):
    factorization = get_factorization(name)
    layer = layer_for(name, groups=groups, bias=True, padding=(1, 1))
    ranks = tuple(max(1, rank - 1) for rank in full_ranks(factorization, layer))
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
    held = sum(kernel.size for kernel in result.weights) + result.bias.size
    assert sequence_parameters(result.sequence) == held


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("groups", [1, 2])
def test_error_falls_as_ranks_grow(name, groups):
    factorization = get_factorization(name)
    layer = layer_for(name, groups=groups, inputs=8, outputs=8)
    weight = weight_for(layer)
    full = full_ranks(factorization, layer)
    errors = [
        decompose(
            factorization, layer, weight, None, [max(1, round(share * rank)) for rank in full]
        ).relative_error
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
    assert 0 < errors[0] < 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("groups", [1, 2])
def test_reconstruction_agrees_with_the_stated_error(name, groups):
    factorization = get_factorization(name)
    layer = layer_for(name, groups=groups)
    weight = weight_for(layer)
    result = decompose(factorization, layer, weight, None, [2] * len(factorization.rank_names))
    rebuilt = reconstruct(result.sequence, result.weights)
    assert rebuilt.shape == weight.shape
    error = np.linalg.norm(weight - rebuilt) / np.linalg.norm(weight)
    assert error == pytest.approx(result.relative_error, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_kernels_of_low_rank_are_found_exactly(name):
    factorization = get_factorization(name)
    layer = layer_for(name, inputs=10, outputs=12)
    generator = np.random.default_rng(3)
    output, core, inputs = (
        generator.standard_normal(shape) for shape in [(12, 3), (3, 2, *layer.kernel), (2, 10)]
    )
    # (T, R4) x (R4, R3, D, D) x (R3, S) -> (T, S, D, D)
    weight = np.einsum("tp,pqij,qs->tsij", output, core, inputs)
    ranks = {"tucker2": (2, 3), "tucker1": (3,), "svd": (2,)}[name]
    assert decompose(factorization, layer, weight, None, ranks).relative_error < 1e-6


def degenerate_kernels(shape):
    generator = np.random.default_rng(0)
    dense = generator.standard_normal(shape)
    half_dead = dense.copy()
    half_dead[::2] = 0
    one_value = np.zeros(shape)
    one_value[0, 0, 0, 0] = 1
    return {
        "zeros": np.zeros(shape),
        "equal": np.ones(shape),
        "one value": one_value,
        "half dead": half_dead,
        "tiny": dense * 1e-30,
        "huge": dense * 1e30,
    }


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", degenerate_kernels((1, 1, 1, 1)))
def test_degenerate_kernels_give_bounded_factors(name, kind):
    factorization = get_factorization(name)
    layer = layer_for(name)
    weight = degenerate_kernels(layer.weight_shape)[kind].astype(np.float32)
    largest = max(1.0, 2 * float(np.linalg.norm(weight.astype(np.float64))))
    full = full_ranks(factorization, layer)
    for ranks in itertools.product(*({1, rank} for rank in full)):
        result = decompose(factorization, layer, weight, None, ranks)
        for kernel in result.weights:
            assert np.isfinite(kernel).all()
            assert np.abs(kernel).max() <= largest
        assert 0 <= result.relative_error <= 1
        if ranks == full:
            assert result.relative_error < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_the_same_kernel_gives_the_same_bytes(name):
    factorization = get_factorization(name)
    layer = layer_for(name, inputs=16, outputs=12)
    ranks = [5] * len(factorization.rank_names)
    first, second = (
        decompose(factorization, layer, weight_for(layer), None, ranks) for _ in range(2)
    )
    for one, other in zip(first.weights, second.weights, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ALL)
def test_full_ranks_bound_the_spectra(name):
    factorization = get_factorization(name)
    layer = layer_for(name, inputs=40, outputs=3)
    spectra = factorization.spectra(weight_for(layer))
    assert len(spectra) == len(factorization.rank_names)
    for spectrum, full in zip(spectra, full_ranks(factorization, layer), strict=True):
        assert len(spectrum.singular_values) == full == min(spectrum.rows, spectrum.columns)
        assert (np.diff(spectrum.singular_values) <= 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("offset", [-1, 1])
def test_ranks_out_of_range_are_told(name, offset):
    factorization = get_factorization(name)
    layer = layer_for(name)
    ranks = [0 if offset < 0 else rank + 1 for rank in full_ranks(factorization, layer)]
    with pytest.raises(UserError, match=f"{factorization.rank_names[0]} rank of {name} is"):
        decompose(factorization, layer, weight_for(layer), None, ranks)


@pytest.mark.parametrize("name", ALL)
def test_another_number_of_ranks_is_told(name):
    factorization = get_factorization(name)
    layer = layer_for(name)
    with pytest.raises(UserError, match="Give one number for each"):
        decompose(factorization, layer, weight_for(layer), None, [1, 1, 1, 1])


def test_weights_that_do_not_fit_are_told():
    layer = PlainLayer(4, 6)
    svd = get_factorization("svd")
    with pytest.raises(UserError, match=r"has shape \(6, 5\)"):
        decompose(svd, layer, np.zeros((6, 5)), None, [1])
    with pytest.raises(UserError, match="NaN or infinity"):
        decompose(svd, layer, np.full((6, 4), np.nan), None, [1])


def test_unknown_factorization_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'tucker2'"):
        get_factorization("tucker3")


def test_layers_that_are_not_taken_are_told():
    window, point = PlainLayer(4, 6, kernel=(1, 3)), PlainLayer(4, 6)
    assert "1 x 3" in get_factorization("svd").applies_to(window)
    assert "take svd" in get_factorization("tucker2").applies_to(point)
    with pytest.raises(UserError, match="svd does not take this layer"):
        decompose(get_factorization("svd"), window, np.zeros(window.weight_shape), None, [1])


@pytest.mark.parametrize("groups", [1, 2])
def test_tucker2_costs_what_kim_states(groups):
    """S R3 + D^2 R3 R4 + T R4 weights; S R3 HW + D^2 R3 R4 H'W' + T R4 H'W' MACs, per group."""
    layer = PlainLayer(
        10 * groups, 12 * groups, kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=groups
    )
    sequence = grouped_sequence(get_factorization("tucker2"), layer, (4, 5))
    assert sequence_parameters(sequence) == groups * (10 * 4 + 9 * 4 * 5 + 12 * 5)
    # 8 x 6 becomes 4 x 3.
    expected = groups * (10 * 4 * 48 + 9 * 4 * 5 * 12 + 12 * 5 * 12)
    assert sequence_macs(sequence, (8, 6)) == expected


def test_tucker1_and_svd_cost_two_layers():
    layer = PlainLayer(3, 64, kernel=(3, 3), padding=(1, 1))
    sequence = grouped_sequence(get_factorization("tucker1"), layer, (12,))
    assert sequence_parameters(sequence) == 9 * 3 * 12 + 12 * 64
    assert sequence_macs(sequence, (8, 8)) == 64 * (9 * 3 * 12 + 12 * 64)
    sequence = grouped_sequence(get_factorization("svd"), PlainLayer(20, 30, stride=(2, 2)), (7,))
    # The stride is in the first layer: both work on 4 x 4 positions.
    assert sequence_macs(sequence, (8, 8)) == 16 * (20 * 7 + 7 * 30)


def test_tucker2_factors_are_orthonormal():
    layer = PlainLayer(16, 20, kernel=(3, 3))
    result = decompose(get_factorization("tucker2"), layer, weight_for(layer), None, (6, 8))
    first, _, last = (kernel.reshape(kernel.shape[:2]) if kernel.shape[2:] == (1, 1) else kernel
                      for kernel in result.weights)  # fmt: skip
    np.testing.assert_allclose(first @ first.T, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(last.T @ last, np.eye(8), atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_tucker2_is_as_good_as_tensorly(decay):
    from tensorly.decomposition import partial_tucker

    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((48, 40, 3, 3))
    kernel *= (np.arange(1, 49) ** -decay)[:, None, None, None]
    (core, _), _ = partial_tucker(kernel, rank=[16, 14], modes=[0, 1])
    norm = np.linalg.norm(kernel)
    reference = np.sqrt(norm**2 - np.linalg.norm(core) ** 2) / norm
    layer = PlainLayer(40, 48, kernel=(3, 3))
    result = decompose(get_factorization("tucker2"), layer, kernel, None, (14, 16))
    assert result.relative_error <= 1.001 * reference


@pytest.mark.parametrize(("outputs", "inputs"), [(30, 12), (12, 30), (20, 20)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_svd_is_the_best_approximation(outputs, inputs, rank):
    matrix = np.random.default_rng(0).standard_normal((outputs, inputs))
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    best = np.linalg.norm(singular_values[rank:]) / np.linalg.norm(singular_values)
    result = decompose(get_factorization("svd"), PlainLayer(inputs, outputs), matrix, None, [rank])
    assert result.relative_error == pytest.approx(best, abs=1e-6)
    first, second = (kernel[:, :, 0, 0] for kernel in result.weights)
    halves = np.sqrt(singular_values[:rank])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), halves, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(second, axis=0), halves, rtol=1e-5)


def test_svd_at_full_rank_keeps_the_smallest_singular_values():
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((30, 30)))[0] for _ in range(2))
    matrix = (left * np.logspace(0, -12, 30)) @ right
    result = decompose(get_factorization("svd"), PlainLayer(30, 30), matrix, None, [30])
    rebuilt = reconstruct(result.sequence, result.weights)
    np.testing.assert_allclose(rebuilt[:, :, 0, 0], matrix, atol=1e-7)


def test_tucker2_lowers_ranks_that_the_other_cannot_use():
    tucker2 = get_factorization("tucker2")
    layer = PlainLayer(64, 64, kernel=(3, 3))
    assert tucker2.consistent(layer, (40, 2)) == (18, 2)
    assert tucker2.consistent(layer, (1, 40)) == (1, 9)
    assert tucker2.consistent(layer, (20, 30)) == (20, 30)
