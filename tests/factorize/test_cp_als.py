"""CP by alternating least squares with bounded terms."""

import math

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization
from lowrank.factorize.cp_als import CpAls

LAYER = PlainLayer(14, 18, kernel=(3, 2))


def random_kernel(seed=0):
    return np.random.default_rng(seed).standard_normal(LAYER.weight_shape)


def kernel_of_rank_three_and_border_rank_two():
    """Return a a b + a b a + b a a.

    Sums of two terms can approximate it arbitrarily well, but no such sum equals it.
    """
    a, b = np.eye(4)[:2]
    triples = [(a, a, b), (a, b, a), (b, a, a)]
    # (T,) x (S,) x (D^2,) -> (T, S, D^2)
    return sum(np.einsum("t,s,k->tsk", *vectors) for vectors in triples)[..., None]


def sum_of_squares(kernel, *, bound, max_sweeps):
    """Return the sum of squared norms, as a multiple of the kernel's squared norm."""
    terms = CpAls(bound=bound, tolerance=0, max_sweeps=max_sweeps).terms(kernel, 2)
    return np.sum(terms.norms**2) / np.sum(kernel**2)


def test_terms_grow_without_limit_unless_they_are_bounded():
    kernel = kernel_of_rank_three_and_border_rank_two()
    sweeps = (30, 300, 3000)
    plain = [sum_of_squares(kernel, bound=math.inf, max_sweeps=n) for n in sweeps]
    assert plain[0] > 3
    assert plain[1] > 2 * plain[0]
    assert plain[2] > 2 * plain[1]
    for bound in (1, 2):
        for count in sweeps:
            assert sum_of_squares(kernel, bound=bound, max_sweeps=count) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", ["cp_als", "cp4"])
@pytest.mark.parametrize("bound", [0.5, 1.0])
def test_an_active_bound_is_reached_exactly(name, bound):
    kernel = random_kernel()
    if name == "cp_als":
        kernel = kernel.reshape(18, 14, 6, 1)
    factorization = type(get_factorization(name))
    free = factorization(bound=math.inf).terms(kernel, 30).norms
    bounded = factorization(bound=bound).terms(kernel, 30).norms
    norm_squared = np.sum(kernel**2)
    assert np.sum(free**2) > 1.2 * norm_squared
    assert np.sum(bounded**2) == pytest.approx(bound * norm_squared, rel=1e-6)


@pytest.mark.parametrize("rank", [8, 16, 40])
def test_joint_improvement_lowers_the_error(rank):
    errors = [
        decompose(factorization, LAYER, random_kernel(), None, [rank]).relative_error
        for factorization in (
            get_factorization("cp_tpm"),
            CpAls(max_sweeps=1),
            CpAls(max_sweeps=5),
            get_factorization("cp_als"),
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.99 * errors[0]


def test_a_looser_bound_gives_a_smaller_error():
    errors = [
        decompose(CpAls(bound=bound), LAYER, random_kernel(), None, [30]).relative_error
        for bound in (0.5, 1, 2)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("seed", range(3))
def test_planted_terms_are_found(seed):
    generator = np.random.default_rng(seed)
    factors = [generator.standard_normal((n, 4)) for n in (18, 14, 6)]
    # (T, R) x (S, R) x (D^2, R) -> (T, S, D^2)
    kernel = np.einsum("tr,sr,kr->tsk", *factors).reshape(LAYER.weight_shape)
    assert decompose(CpAls(max_sweeps=500), LAYER, kernel, None, [4]).relative_error < 1e-4


def test_cp_als_is_as_good_as_tensorly():
    import tensorly

    kernel = random_kernel()
    terms = tensorly.decomposition.parafac(
        kernel.reshape(18, 14, 6), 10, init="random", random_state=0, tol=1e-5
    )
    rebuilt = tensorly.cp_to_tensor(terms).reshape(kernel.shape)
    reference = np.linalg.norm(kernel - rebuilt) / np.linalg.norm(kernel)
    error = decompose(get_factorization("cp_als"), LAYER, kernel, None, [10]).relative_error
    assert error <= 1.01 * reference
