"""Spatial SVD: a window along the height, then one along the width."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization

SPATIAL_SVD = get_factorization("spatial_svd")


def test_each_layer_has_the_geometry_along_its_axis():
    layer = PlainLayer(
        5, 9, kernel=(3, 2), stride=(2, 1), padding=(1, 3), dilation=(1, 4), bias=True
    )
    assert SPATIAL_SVD.sequence(layer, (4,)) == (
        PlainLayer(5, 4, kernel=(3, 1), stride=(2, 1), padding=(1, 0)),
        PlainLayer(4, 9, kernel=(1, 2), padding=(0, 3), dilation=(1, 4), bias=True),
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(9, 5), (4, 11)])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_spatial_svd_is_the_best_sum_of_separable_windows(outputs, inputs, rank):
    layer = PlainLayer(inputs, outputs, kernel=(3, 2))
    kernel = np.random.default_rng(0).standard_normal(layer.weight_shape)
    # (T, S, D_h, D_w) -> (S D_h, T D_w)
    matrix = np.moveaxis(kernel, 0, 2).reshape(inputs * 3, outputs * 2)
    singular_values = np.linalg.svd(matrix, compute_uv=False)

    result = decompose(SPATIAL_SVD, layer, kernel, None, [rank])

    best = np.linalg.norm(singular_values[rank:]) / np.linalg.norm(singular_values)
    assert result.relative_error == pytest.approx(best, abs=1e-6)
    vertical, horizontal = result.weights
    singular = singular_values[:rank]
    np.testing.assert_allclose(np.sum(vertical**2, axis=(1, 2, 3)), singular, rtol=1e-5)
    np.testing.assert_allclose(np.sum(horizontal**2, axis=(0, 2, 3)), singular, rtol=1e-5)
