import numpy as np
import pytest
import tensorly
from tensorly.decomposition import tensor_train

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization

TRAIN = get_factorization("tensor_train")
LAYER = PlainLayer(12, 10, kernel=(3, 2))


def kernel_of(layer, seed=0, decay=0.0):
    """Return a random kernel; with a decay, later channels have smaller values."""
    kernel = np.random.default_rng(seed).standard_normal(layer.weight_shape)
    for axis in (0, 1):
        weights = np.exp(-decay * np.arange(kernel.shape[axis]))
        kernel = np.moveaxis(np.moveaxis(kernel, axis, -1) * weights, -1, axis)
    return kernel


def error_of(kernel, ranks):
    return decompose(TRAIN, LAYER, kernel.astype(np.float32), None, ranks).relative_error


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("ranks", [(4, 6, 5), (12, 10, 3), (2, 3, 2)])
def test_tensor_train_is_as_good_as_tensorly(ranks, decay):
    kernel = kernel_of(LAYER, decay=decay)
    train = kernel.transpose(1, 2, 3, 0)
    rebuilt = tensorly.tt_to_tensor(tensor_train(train, rank=[1, *ranks, 1]))
    expected = np.linalg.norm(train - rebuilt) / np.linalg.norm(train)
    assert error_of(kernel, ranks) == pytest.approx(expected, rel=1e-5)


def test_the_cores_before_the_last_two_are_orthonormal():
    first, rows, *_ = TRAIN.factors(kernel_of(LAYER), (4, 6, 5))
    for kernel in (first, rows):
        matrix = kernel.reshape(len(kernel), -1)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(kernel)), atol=1e-12)


def test_one_truncated_rank_has_the_error_of_its_unfolding():
    kernel, full = kernel_of(LAYER, decay=0.2), TRAIN.full_ranks(LAYER)
    for axis, rank in ((0, 5), (1, 9), (2, 4)):
        ranks = tuple(rank if axis == other else full_rank for other, full_rank in enumerate(full))
        squares = np.square(TRAIN.spectra(kernel)[axis].singular_values)
        assert error_of(kernel, ranks) ** 2 == pytest.approx(
            squares[rank:].sum() / squares.sum(), rel=1e-4
        )


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((4, 6, 5), (4, 6, 5)),
        ((1, 20, 10), (1, 3, 6)),
        ((12, 20, 1), (6, 2, 1)),
        ((12, 1, 10), (3, 1, 2)),
    ],
)
def test_ranks_respect_the_limits_of_their_neighbors(ranks, expected):
    assert TRAIN.consistent(LAYER, ranks) == expected
    assert TRAIN.consistent(LAYER, expected) == expected


@pytest.mark.parametrize("kernel", [(1, 1), (3, 1), (1, 5)])
def test_a_window_along_both_axes_is_required(kernel):
    assert "expected a window along both axes" in TRAIN.applies_to(PlainLayer(4, 4, kernel=kernel))
    assert TRAIN.applies_to(PlainLayer(4, 4, kernel=(3, 3))) is None
