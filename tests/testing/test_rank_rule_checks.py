"""The public checks of rank rules: all of ours pass, and each check finds what it looks for."""

from typing import Literal

import pytest
from pydantic import Field

from lowrank.core.plans import Share
from lowrank.ranks.rank_settings import AdjustedSettings
from lowrank.ranks.rule import RULES, Milder, RankRule
from lowrank.testing import check_rank_rule
from lowrank.testing.rank_rule_checks import CHECKS

SETTINGS = {
    "budget": {"target": {"macs": 0.5}},
    "fixed": {"table": {"wide": [4, 6], "narrow": [8], "grouped": [4, 4], "matrix": [9]}},
}


@pytest.mark.parametrize("name", RULES.names())
def test_our_rules_keep_the_contract(name):
    check_rank_rule(RULES.get(name), SETTINGS.get(name))


class ThirdSettings(AdjustedSettings):
    """Settings of the rule that the broken rules change."""

    select: Literal["third"] = Field("third", description="A third of the full ranks.")


class Third(RankRule[ThirdSettings]):
    name = "third"
    settings = ThirdSettings

    def ranks(self, candidate, settings):
        return tuple(-(-full // 3) for full in candidate.full_ranks)


def test_an_example_keeps_the_contract():
    check_rank_rule(Third())
    assert "third" not in RULES.names()


class OtherSettings(ThirdSettings):
    select: Literal["fourth"] = Field("fourth", description="A fourth.")


class UndescribedSettings(ThirdSettings):
    strength: int = 1


class ForgetfulSettings(ThirdSettings):
    strength: float = Field(1.0, description="Strength.", exclude=True)


class BadName(Third):
    name = "a third"


class OfAnother(Third):
    settings = OtherSettings


class Undescribed(Third):
    settings = UndescribedSettings


class Forgetful(Third):
    settings = ForgetfulSettings


class OneRank(Third):
    def ranks(self, candidate, settings):
        return (3,)


class NoZeros(Third):
    def ranks(self, candidate, settings):
        return super().ranks(candidate, settings) if candidate.kernel.any() else (-1, -1)


class Writing(Third):
    def ranks(self, candidate, settings):
        candidate.kernel[0] = 0
        return super().ranks(candidate, settings)


class Drifting(Third):
    calls = 0

    def ranks(self, candidate, settings):
        self.calls += 1
        return tuple(1 + self.calls % 5 for _ in candidate.full_ranks)


class Full(Third):
    def ranks(self, candidate, settings):
        return candidate.full_ranks


class NoShares(Third):
    looks_at_all_layers = True

    def share_out(self, choice, table, settings, say):
        return {}, {}


class Stranger(NoShares):
    def share_out(self, choice, table, settings, say):
        return {}, {"elsewhere": Share("svd", (3,))}


class Harsher(Third):
    def milder(self, settings, ease):
        return Milder.of(settings, "weaken", round(0.9 - 0.9 * ease, 2))


BROKEN = [
    (BadName, {}, "attributes", "`name` is 'a third'; expected letters, digits and underscores."),
    (
        OfAnother,
        {},
        "attributes",
        "it has settings with `select` for 'fourth'; expected `select: Literal['third'] = 'third'`",
    ),
    (Undescribed, {}, "settings", "the setting `strength` has no description; expected one"),
    (Forgetful, {"strength": 2.0}, "settings", "after writing and reading; expected"),
    (
        OneRank,
        {},
        "ranks_of_layers",
        "layer 'wide', tucker2: `ranks` returns (3,); expected None or a whole number from 0 for "
        "each of ('input', 'output')",
    ),
    (NoZeros, {}, "kernels_of_zeros", "layer 'narrow' of zeros, spatial_svd: `ranks` returns (-1"),
    (Writing, {}, "kernel_is_kept", "layer 'wide': `ranks` changes the kernel"),
    (Drifting, {}, "deterministic", "two choices give different ranks: {'wide': "),
    (Full, {}, "plan", "no layer is replaced: {'wide': 'its factors at ranks"),
    (NoShares, {}, "shares", "`share_out` returns no shares; expected ranks for some layers."),
    (Stranger, {}, "shares", "a share of 'elsewhere'; expected layers of the method."),
    (Harsher, {}, "milder", "expected more at a larger ease."),
]


@pytest.mark.parametrize(("broken", "settings", "check", "expected"), BROKEN)
def test_a_broken_rule_gets_the_reason(broken, settings, check, expected):
    with pytest.raises(AssertionError) as error:
        check_rank_rule(broken(), settings)
    heading, *lines = str(error.value).splitlines()
    assert heading == f"rank rule '{broken.name}' breaks its contract:"
    assert [line for line in lines if line.startswith(f"{check}: ") and expected in line], lines


def test_each_check_has_a_broken_example():
    assert {check for _, _, check, _ in BROKEN} == CHECKS.keys()


def test_a_known_exception_has_a_reason():
    check_rank_rule(Full(), expected_failures={"plan": "full ranks save nothing", "milder": "same"})
