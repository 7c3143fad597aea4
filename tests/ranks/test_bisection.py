import pytest

from lowrank.errors import UserError
from lowrank.ranks.bisection import Found, cheapest, next_share

TARGET = {"accuracy_drop": 1.0, "confidence": 1.0}


def trials(*pairs):
    return [Found(share, drop, 0.1) for share, drop in pairs]


def test_the_first_trial_is_the_geometric_mean():
    assert next_share((0.04, 0.25), [], **TARGET) == pytest.approx(0.1)


def test_each_trial_halves_the_remaining_range():
    finished = trials((0.1, 2.0))
    assert next_share((0.04, 0.25), finished, **TARGET) == pytest.approx((0.1 * 0.25) ** 0.5)
    finished += trials((0.16, 0.5))
    assert next_share((0.04, 0.25), finished, **TARGET) == pytest.approx((0.1 * 0.16) ** 0.5)


def test_the_limit_is_found_if_cheaper_networks_lose_more():
    """The search reaches the limit up to a factor of (high / low)^(1 / 2^n)."""
    finished = []
    for _ in range(6):
        share = next_share((0.01, 1.0), finished, **TARGET)
        finished += trials((share, 0.0 if share >= 0.2 else 5.0))
    best = finished[cheapest(finished, **TARGET)]
    assert 0.2 <= best.share <= 0.2 * 100 ** (1 / 2**6)


def test_the_cheapest_within_the_target_is_chosen():
    finished = trials((0.1, 2.0), (0.2, 0.3), (0.14, 0.89), (0.12, 0.91))
    assert cheapest(finished, **TARGET) == 2


def test_without_a_trial_within_the_target_the_nearest_is_reported():
    with pytest.raises(UserError, match=r"at a share of 0\.200 .* loses 1\.10 \+- 0\.10"):
        cheapest(trials((0.1, 2.0), (0.2, 1.1)), **TARGET)


def test_json_round_trip():
    trial = Found(0.1, 0.5, 0.2)
    assert Found.from_json(trial.to_json()) == trial


def test_trials_in_any_order_narrow_the_range():
    # 0.2 and 0.4 are within the target, 0.1 and 0.05 are not.
    finished = trials((0.2, 0.3), (0.4, 0.1), (0.1, 2.0), (0.05, 4.0))
    share = next_share((0.01, 1.0), finished, **TARGET)
    assert share == pytest.approx((0.1 * 0.2) ** 0.5)
