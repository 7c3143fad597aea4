"""Tucker-2 with a grouped core."""

from dataclasses import replace

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.errors import UserError
from lowrank.factorize import decompose, get_factorization
from lowrank.factorize.block_term import BlockTerm

LAYER = PlainLayer(24, 32, kernel=(3, 3))


def kernel_with_decay(seed=0):
    generator = np.random.default_rng(seed)
    kernel = generator.standard_normal(LAYER.weight_shape)
    return kernel * (np.arange(1, 33) ** -0.7)[:, None, None, None]


def error(factorization, ranks, kernel):
    return decompose(factorization, LAYER, kernel, None, ranks).relative_error


def test_one_block_is_tucker2():
    kernel = kernel_with_decay()
    one = decompose(BlockTerm(1), LAYER, kernel, None, (8, 12))
    tucker2 = decompose(get_factorization("tucker2"), LAYER, kernel, None, (8, 12))
    assert one.sequence == tucker2.sequence
    # The results differ slightly, because the block term stops at its tolerance twice.
    assert one.relative_error == pytest.approx(tucker2.relative_error, rel=2e-3)


def test_the_core_is_grouped():
    sequence = get_factorization("block_term4").sequence(replace(LAYER, bias=True), (8, 12))
    assert sequence == (
        PlainLayer(24, 8),
        PlainLayer(8, 12, kernel=(3, 3), groups=4),
        PlainLayer(12, 32, bias=True),
    )


@pytest.mark.parametrize("blocks", [2, 4])
def test_error_is_between_one_block_and_a_full_core(blocks):
    kernel, ranks = kernel_with_decay(), (8, 16)
    grouped = error(BlockTerm(blocks), ranks, kernel)
    # Better than a single block, but worse than the full core.
    assert error(get_factorization("tucker2"), ranks, kernel) < grouped
    assert grouped < error(BlockTerm(1), tuple(rank // blocks for rank in ranks), kernel)


def test_blocks_are_improved_together():
    kernel, ranks = kernel_with_decay(), (8, 16)
    greedy = error(BlockTerm(4, max_sweeps=0), ranks, kernel)
    assert error(BlockTerm(4), ranks, kernel) < 0.999 * greedy


def test_planted_blocks_are_found():
    generator = np.random.default_rng(0)
    outputs, inputs = (np.linalg.qr(generator.standard_normal((n, 8)))[0] for n in (32, 24))
    # Two blocks in orthogonal subspaces; one is twice as strong as the other.
    kernel = sum(
        strength
        # (T, 4) x (4, 4, D, D) x (4, S) -> (T, S, D, D)
        * np.einsum(
            "tp,pqij,sq->tsij",
            outputs[:, half],
            generator.standard_normal((4, 4, 3, 3)),
            inputs[:, half],
        )
        for strength, half in [(2, slice(0, 4)), (1, slice(4, 8))]
    )
    assert error(BlockTerm(2), (8, 8), kernel) < 1e-6
    assert error(BlockTerm(2), (6, 6), kernel) > 0.1


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((8, 12), (8, 12)),
        ((9, 15), (8, 12)),
        ((2, 3), (4, 4)),
        ((24, 4), (24, 4)),
        ((40, 4), (36, 4)),
    ],
)
def test_ranks_become_multiples_within_the_limits_of_a_block(ranks, expected):
    assert get_factorization("block_term4").consistent(LAYER, ranks) == expected


def test_ranks_must_be_multiples_of_the_block_count():
    with pytest.raises(UserError, match="expected a multiple of 4"):
        error(get_factorization("block_term4"), (8, 10), kernel_with_decay())


def test_more_blocks_than_channels():
    layer = PlainLayer(3, 5, kernel=(3, 3))
    kernel = np.random.default_rng(0).standard_normal(layer.weight_shape)
    factorization = get_factorization("block_term8")
    assert factorization.full_ranks(layer) == (8, 40)
    assert decompose(factorization, layer, kernel, None, (8, 40)).relative_error < 1e-6
