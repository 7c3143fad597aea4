"""The public checks of factorizations: all of ours pass, and each check finds what it looks for."""

import re

import numpy as np
import pytest

from lowrank.factorize import FACTORIZATIONS
from lowrank.factorize.svd import Svd
from lowrank.testing import check_factorization
from lowrank.testing.factorization_checks import CHECKS

# One relative of each is checked in `make test`: cp_tpm and block_term2.
SLOW = ("cp4", "cp_als", "block_term4", "block_term8")


@pytest.mark.seconds
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in FACTORIZATIONS.names()
    ],
)
def test_our_factorizations_keep_the_contract(name):
    check_factorization(FACTORIZATIONS.get(name))


class BadName(Svd):
    name = "my svd"


class NoRanks(Svd):
    rank_names = ()


class RefusesAll(Svd):
    def applies_to(self, layer):
        return "it is a Tuesday"


class TwoFullRanks(Svd):
    def full_ranks(self, layer):
        return (4, 4)


class NeverConsistent(Svd):
    def consistent(self, layer, ranks):
        return (max(1, ranks[0] - 1),)


class BiasFirst(Svd):
    def sequence(self, layer, ranks):
        return super().sequence(layer, ranks)[::-1]


class Transposed(Svd):
    def factors(self, kernel, ranks):
        return tuple(factor.swapaxes(0, 1) for factor in super().factors(kernel, ranks))


class OneMore(Svd):
    def factors(self, kernel, ranks):
        first, second = super().factors(kernel, ranks)
        return np.concatenate([first, first[:1]]), np.concatenate([second, second[:, :1]], 1)


class Scaled(Svd):
    def factors(self, kernel, ranks):
        first, second = super().factors(kernel, ranks)
        return 0.9 * first, second


class RankOne(Svd):
    def factors(self, kernel, ranks):
        first, second = super().factors(kernel, ranks)
        first[1:] = 0
        return first, second


class Normalized(Svd):
    def factors(self, kernel, ranks):
        norm = np.sqrt(np.square(kernel).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            first, second = super().factors(kernel, ranks)
            return first / norm, second * norm


class Random(Svd):
    def factors(self, kernel, ranks):
        first, second = super().factors(kernel, ranks)
        return first * (1 + 1e-7 * np.random.default_rng().random()), second


class Ascending(Svd):
    def spectra(self, kernel):
        (spectrum,) = super().spectra(kernel)
        spectrum.singular_values[:] = spectrum.singular_values[::-1].copy()
        return (spectrum,)


class TwoSpectra(Svd):
    def spectra(self, kernel):
        return super().spectra(kernel) * 2


class Boasting(Svd):
    def kept(self, kernel):
        kept = super().kept(kernel)
        return np.full_like(kept, kept[-1])


class Zeros(Svd):
    def factors(self, kernel, ranks):
        return tuple(0 * factor for factor in super().factors(kernel, ranks))


FIRST = "3 x 2 from 8 to 12 channels, padding (1, 1)"
BROKEN = [
    (BadName, "attributes", "`name` is 'my svd'; expected letters, digits and underscores."),
    (NoRanks, "attributes", "it has `rank_names = ()`; expected a tuple with a name for each rank"),
    (RefusesAll, "attributes", "it is a Tuesday; expected None for some."),
    (TwoFullRanks, "full_ranks", "`full_ranks` is (4, 4); expected a positive whole number for"),
    (NeverConsistent, "full_ranks", "`consistent` changes the full ranks (12,) to (11,)."),
    (NeverConsistent, "consistent_ranks", "gives (11,) for (12,), and then (10,); expected the"),
    (BiasFirst, "sequence", "have biases [True, False]; expected only that of the last layer."),
    (BiasFirst, "sequence", "the layers have the channels 6 to 12, 8 to 6; expected a chain from"),
    (Transposed, "factors", "the factors have the shapes [(8, 1, 3, 2), (1, 12, 1, 1)]; expected"),
    (OneMore, "costs", "expected 72, the parameters of the sequence"),
    (Scaled, "exact_at_full_rank", "at full rank (12,): the relative error is 0.1; expected 0."),
    (Scaled, "exact_at_full_rank", "from those of the layer."),
    (RankOne, "error_falls_with_rank", "expected a smaller one at higher ranks."),
    (Normalized, "degenerate_kernels", "kernel: zeros: a factor has NaN or infinity; expected"),
    (Random, "deterministic", "two calls give different factors."),
    (Ascending, "spectra", "expected singular values in descending order."),
    (TwoSpectra, "spectra", "2 spectra; expected one for each of ('rank',)."),
    (Boasting, "kept_norm", "the squared norm that the factors keep."),
    (Zeros, "moments", "that of factors without moments."),
]


@pytest.mark.parametrize(("broken", "check", "expected"), BROKEN)
def test_a_broken_factorization_gets_the_reason(broken, check, expected):
    with pytest.raises(AssertionError) as error:
        check_factorization(broken())
    heading, *lines = str(error.value).splitlines()
    assert heading == f"factorization '{broken.name}' breaks its contract:"
    assert [line for line in lines if line.startswith(f"{check}: ") and expected in line], lines


def test_each_check_has_a_broken_example():
    assert {check for _, check, _ in BROKEN} == CHECKS.keys()


def test_a_message_names_the_layer_and_the_ranks():
    with pytest.raises(
        AssertionError, match=re.escape(f"{FIRST} at full rank (12,): the relative")
    ):
        check_factorization(Scaled())


def test_a_known_exception_has_a_reason():
    reason = "the noise is on purpose"
    check_factorization(Random(), expected_failures={"deterministic": reason})
    with pytest.raises(AssertionError, match="expected to fail: the noise is on purpose"):
        check_factorization(Svd(), expected_failures={"deterministic": reason})
