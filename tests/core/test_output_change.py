"""Outputs are compared as their definitions say."""

import numpy as np
import pytest

from lowrank.core.output_change import OutputSums, ReferenceOutputs


def probabilities(seed: int, noise: float = 0.0) -> np.ndarray:
    scores = 3 * np.random.default_rng(seed).standard_normal((12, 7, 50))
    scores += noise * np.random.default_rng(seed + 1).standard_normal(scores.shape)
    powers = np.exp(scores)
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def changes_of(actual: np.ndarray, reference: np.ndarray):
    sums = OutputSums()
    for start in (0, 5, 10):
        rows = slice(start, start + 5)
        sums.add({"y": actual[rows]}, ReferenceOutputs({"y": reference[rows]}))
    return sums.changes()["y"]


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.001])
def test_distributions(noise):
    reference, actual = probabilities(0), probabilities(0, noise)
    p, q = reference.astype(np.float64), actual.astype(np.float64)
    change = changes_of(actual, reference)
    nats = (p * np.log(p / q)).sum(-1).mean()
    assert change.divergence == pytest.approx(nats, rel=1e-3, abs=2e-8)
    answers = p.argmax(-1)
    assert change.same_percent == pytest.approx(100 * (answers == q.argmax(-1)).mean())
    assert change.chance_percent == pytest.approx(100 * np.bincount(answers.ravel()).max() / 84)
    own, other = (np.take_along_axis(p, of.argmax(-1)[..., None], -1) for of in (p, q))
    lost = (own - other).ravel()
    assert change.lost_percent == pytest.approx(100 * lost.mean(), rel=1e-5, abs=1e-7)
    error = 100 * lost.std() / np.sqrt(lost.size)
    assert change.lost_error == pytest.approx(error, rel=1e-5, abs=1e-7)
    spread = np.linalg.norm(p - p.mean(0))
    assert change.relative_error == pytest.approx(np.linalg.norm(p - q) / spread, rel=1e-4)


@pytest.mark.parametrize("only_divergence", [False, True])
def test_the_mean_divergence_of_several_outputs(only_divergence):
    """One output is a distribution over classes, the other is not."""
    expected = {"p": probabilities(0), "x": np.arange(24, dtype=np.float32).reshape(12, 2) - 9}
    actual = {"p": probabilities(0, 0.1), "x": expected["x"] * 1.5}
    sums = OutputSums(only_divergence=only_divergence)
    sums.add(actual, ReferenceOutputs(expected))
    divergences = [changes_of(actual[name], expected[name]).divergence for name in expected]
    assert sums.divergence() == pytest.approx(sum(divergences) / 2, rel=1e-6)


def test_other_outputs():
    reference = np.random.default_rng(0).standard_normal((12, 3, 4)).astype(np.float32) + 5
    actual = reference + 0.1
    change = changes_of(actual, reference)
    error = np.linalg.norm(actual - reference) / np.linalg.norm(reference - reference.mean(0))
    assert change.relative_error == pytest.approx(error, rel=1e-4)
    assert change.divergence == pytest.approx(error**2 / 2, rel=1e-4)
    assert change.same_percent is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_count_as_very_large(value):
    reference = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    actual = reference.copy()
    actual[0, 0] = value
    assert 1e20 < changes_of(actual, reference).divergence < np.inf
    broken = probabilities(0)
    broken[0, 0, 0] = np.nan
    assert np.isfinite(changes_of(broken, probabilities(0)).divergence)
