"""Tucker-2: its cost, its factors and a comparison with TensorLy."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer, sequence_macs, sequence_parameters
from lowrank.factorize import decompose, get_factorization, grouped_sequence


@pytest.mark.parametrize("groups", [1, 2])
def test_tucker2_costs_match_kim_et_al(groups):
    """Weights per group: S R3 + D^2 R3 R4 + T R4. MACs: S R3 HW + D^2 R3 R4 H'W' + T R4 H'W'."""
    layer = PlainLayer(
        10 * groups, 12 * groups, kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=groups
    )
    sequence = grouped_sequence(get_factorization("tucker2"), layer, (4, 5))
    assert sequence_parameters(sequence) == groups * (10 * 4 + 9 * 4 * 5 + 12 * 5)
    # 8 x 6 becomes 4 x 3.
    expected = groups * (10 * 4 * 48 + 9 * 4 * 5 * 12 + 12 * 5 * 12)
    assert sequence_macs(sequence, (8, 6)) == expected


def test_tucker2_factors_are_orthonormal():
    layer = PlainLayer(16, 20, kernel=(3, 3))
    result = decompose(
        get_factorization("tucker2"),
        layer,
        np.random.default_rng(0).standard_normal(layer.weight_shape),
        None,
        (6, 8),
    )
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


def test_tucker2_lowers_unusable_ranks():
    tucker2 = get_factorization("tucker2")
    layer = PlainLayer(64, 64, kernel=(3, 3))
    assert tucker2.consistent(layer, (40, 2)) == (18, 2)
    assert tucker2.consistent(layer, (1, 40)) == (1, 9)
    assert tucker2.consistent(layer, (20, 30)) == (20, 30)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tucker2_does_not_depend_on_scale(scale):
    layer = PlainLayer(30, 40, kernel=(3, 3))
    kernel = np.random.default_rng(0).standard_normal(layer.weight_shape)
    tucker2 = get_factorization("tucker2")
    expected, scaled = (
        decompose(tucker2, layer, weight, None, (10, 12)).relative_error
        for weight in (kernel, scale * kernel)
    )
    assert scaled == pytest.approx(expected, rel=1e-6)
