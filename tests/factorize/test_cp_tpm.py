"""CP by the tensor power method."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization

CP_TPM = get_factorization("cp_tpm")
LAYER = PlainLayer(14, 18, kernel=(3, 2))


def kernel_with_decay(decay=0.7):
    kernel = np.random.default_rng(0).standard_normal(LAYER.weight_shape)
    return kernel * (np.arange(1, 19) ** -decay)[:, None, None, None]


def orthogonal_terms(rank, separable):
    """Return a kernel with orthonormal channel vectors and unit windows, and its norms.

    The norms go from `rank` down to 1.
    """
    generator = np.random.default_rng(0)
    outputs, inputs = (
        np.linalg.qr(generator.standard_normal((n, rank)))[0]
        for n in (LAYER.out_channels, LAYER.in_channels)
    )
    if separable:
        windows = np.einsum("ir,jr->ijr", *(generator.standard_normal((n, rank)) for n in (3, 2)))
    else:
        windows = generator.standard_normal((3, 2, rank))
    windows /= np.linalg.norm(windows, axis=(0, 1))
    norms = np.arange(rank, 0, -1.0)
    # (R,) x (T, R) x (S, R) x (D_h, D_w, R) -> (T, S, D_h, D_w)
    return np.einsum("r,tr,sr,ijr->tsij", norms, outputs, inputs, windows), norms


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_each_term_lowers_the_squared_error_by_its_squared_norm(decay):
    kernel = kernel_with_decay(decay)
    terms = CP_TPM.terms(kernel.reshape(18, 14, 6, 1), 20)
    assert (terms.norms > 0).all()
    expected = 1 - np.cumsum(terms.norms**2) / np.linalg.norm(kernel) ** 2
    for rank in (1, 7, 20):
        error = decompose(CP_TPM, LAYER, kernel, None, [rank]).relative_error
        assert error**2 == pytest.approx(expected[rank - 1], rel=1e-5)


def test_terms_of_a_lower_rank_come_first():
    few, many = (decompose(CP_TPM, LAYER, kernel_with_decay(), None, [rank]) for rank in (5, 9))
    for axis, one, other in zip((0, 0, 1), few.weights, many.weights, strict=True):
        assert (one == np.take(other, range(5), axis=axis)).all()


@pytest.mark.parametrize("name", ["cp_tpm", "cp_als", "cp4"])
def test_orthogonal_terms_are_found_one_by_one(name):
    kernel, norms = orthogonal_terms(6, separable=name == "cp4")
    factorization = type(get_factorization(name))(tolerance=0, max_sweeps=300)
    terms = factorization.terms(
        kernel if name == "cp4" else kernel.reshape(*kernel.shape[:2], 6, 1), 6
    )
    np.testing.assert_allclose(np.sort(terms.norms)[::-1], norms, rtol=1e-6)
    assert decompose(factorization, LAYER, kernel, None, [6]).relative_error < 1e-6


def test_default_settings_find_orthogonal_terms_approximately():
    kernel, _ = orthogonal_terms(6, separable=False)
    assert decompose(CP_TPM, LAYER, kernel, None, [6]).relative_error < 0.05


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_cp_tpm_is_as_good_as_tensorly(decay):
    from tensorly.decomposition import parafac_power_iteration

    kernel = kernel_with_decay(decay)
    np.random.seed(0)  # noqa: NPY002 (TensorLy draws its starts from the global generator)
    norms, _ = parafac_power_iteration(kernel.reshape(18, 14, 6), 12)
    # Each deflation lowers the squared error by the square of the norm.
    reference = np.sqrt(1 - np.sum(norms**2) / np.linalg.norm(kernel) ** 2)
    error = decompose(CP_TPM, LAYER, kernel, None, [12]).relative_error
    assert error <= 1.01 * reference


def test_norms_are_distributed_evenly():
    result = decompose(CP_TPM, LAYER, kernel_with_decay(), None, [5])
    first, window, last = result.weights
    squares = np.sum(first**2, axis=(1, 2, 3))
    np.testing.assert_allclose(np.sum(window**2, axis=(1, 2, 3)), squares, rtol=1e-5)
    np.testing.assert_allclose(np.sum(last**2, axis=(0, 2, 3)), squares, rtol=1e-5)


@pytest.mark.parametrize("name", ["cp_tpm", "cp_als", "cp4"])
@pytest.mark.parametrize("rank", [5, 84])
@pytest.mark.parametrize("is_dead", [False, True])
def test_terms_beyond_the_rank_of_the_kernel_can_train(name, rank, is_dead):
    kernel = np.zeros(LAYER.weight_shape) if is_dead else orthogonal_terms(2, separable=True)[0]
    kernel[:, 3] = 0
    result = decompose(get_factorization(name), LAYER, kernel, None, [rank])
    *first, last = result.weights
    # One row for each factor, one column for each term.
    zeros = np.array(
        [~factor.reshape(rank, -1).any(axis=1) for factor in (*first, last.swapaxes(0, 1))]
    )
    assert (zeros.sum(axis=0) <= 1).all()
    if is_dead:
        assert (zeros.sum(axis=0) == 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_first_term_is_as_good_as_the_best_of_many_starts(seed):
    from tensorly.decomposition import power_iteration

    kernel = np.random.default_rng(seed).standard_normal((18, 14, 6))
    np.random.seed(0)  # noqa: NPY002 (TensorLy draws its starts from the global generator)
    reference, _, _ = power_iteration(kernel, n_repeat=50)
    assert CP_TPM.terms(kernel[..., None], 1).norms[0] >= 0.995 * reference


def test_full_rank_is_the_number_of_fibers():
    assert CP_TPM.full_ranks(PlainLayer(64, 32, kernel=(3, 3))) == (288,)
    assert CP_TPM.full_ranks(PlainLayer(3, 2, kernel=(5, 5))) == (6,)
