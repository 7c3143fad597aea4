"""Rank rules, one file each."""

from lowrank.ranks.bounds import bounds_of
from lowrank.ranks.budget import Losses, Trial, for_target
from lowrank.ranks.curves import rank_choices
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.rule import Candidate, RankRule, RankSettings, taken_layers
from lowrank.ranks.scale import ranks_within
from lowrank.ranks.select import RULES, choose_ranks
from lowrank.ranks.sensitivity import shared_out

__all__ = [
    "RULES",
    "Candidate",
    "Losses",
    "RankRule",
    "RankSettings",
    "Trial",
    "bounds_of",
    "choose_ranks",
    "for_target",
    "leave_negligible",
    "rank_choices",
    "ranks_within",
    "shared_out",
    "taken_layers",
]
