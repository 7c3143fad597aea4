"""Singular value decomposition of a layer's matrix."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization, reconstruct


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


@pytest.mark.parametrize("name", ["svd", "channel_svd", "tucker1"])
def test_a_window_stays_in_the_first_layer(name):
    layer = PlainLayer(5, 9, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    kernel = np.random.default_rng(0).standard_normal(layer.weight_shape)
    singular_values = np.linalg.svd(kernel.reshape(9, -1), compute_uv=False)

    result = decompose(get_factorization(name), layer, kernel, None, [4])

    best = np.linalg.norm(singular_values[4:]) / np.linalg.norm(singular_values)
    assert result.relative_error == pytest.approx(best, abs=1e-6)
    assert result.sequence == (
        PlainLayer(5, 4, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        PlainLayer(4, 9),
    )


def test_null_directions_can_train():
    matrix = np.random.default_rng(0).standard_normal((6, 1)) * np.ones(5)
    for weight in (matrix, np.zeros_like(matrix)):
        result = decompose(get_factorization("svd"), PlainLayer(5, 6), weight, None, [4])
        # Two factors of zero would never train.
        assert result.weights[1].any(axis=(0, 2, 3)).all()
        assert result.relative_error < 1e-6
