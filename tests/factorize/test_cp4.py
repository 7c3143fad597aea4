"""Four-way CP."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization

CP4 = get_factorization("cp4")


def test_each_layer_has_the_geometry_along_its_axis():
    layer = PlainLayer(
        5, 9, kernel=(3, 2), stride=(2, 1), padding=(1, 3), dilation=(1, 4), bias=True
    )
    assert CP4.sequence(layer, (4,)) == (
        PlainLayer(5, 4),
        PlainLayer(4, 4, kernel=(3, 1), stride=(2, 1), padding=(1, 0), groups=4),
        PlainLayer(4, 4, kernel=(1, 2), padding=(0, 3), dilation=(1, 4), groups=4),
        PlainLayer(4, 9, bias=True),
    )


@pytest.mark.parametrize("kernel", [(1, 5), (5, 1)])
@pytest.mark.parametrize("share", [0.3, 1])
def test_a_window_along_one_axis_is_not_split(kernel, share):
    layer = PlainLayer(6, 8, kernel=kernel, stride=(2, 2), padding=(1, 2))
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape)
    cp_als = get_factorization("cp_als")
    assert CP4.full_ranks(layer) == cp_als.full_ranks(layer) == (30,)
    ranks = (round(30 * share),)
    result, expected = (
        decompose(factorization, layer, weight, None, ranks) for factorization in (CP4, cp_als)
    )
    assert result.sequence == expected.sequence
    assert result.relative_error == expected.relative_error


def test_the_three_way_form_is_at_least_as_good():
    layer = PlainLayer(12, 16, kernel=(3, 3))
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape)
    three_way, four_way = (
        decompose(get_factorization(name), layer, weight, None, [8]).relative_error
        for name in ("cp_als", "cp4")
    )
    assert three_way < four_way < 1


def test_separable_windows_are_found():
    generator = np.random.default_rng(0)
    layer = PlainLayer(12, 16, kernel=(3, 3))
    factors = [generator.standard_normal((n, 3)) for n in layer.weight_shape]
    # (T, R) x (S, R) x (D_h, R) x (D_w, R) -> (T, S, D_h, D_w)
    weight = np.einsum("tr,sr,hr,wr->tshw", *factors)
    assert decompose(CP4, layer, weight, None, [3]).relative_error < 1e-3


def test_full_rank_is_the_number_of_fibers():
    assert CP4.full_ranks(PlainLayer(64, 32, kernel=(3, 3))) == (288,)
    assert CP4.full_ranks(PlainLayer(3, 2, kernel=(7, 5))) == (30,)
