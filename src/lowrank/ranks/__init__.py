"""One file for each way of choosing ranks."""

from lowrank.ranks.base import Candidate, RankRule, RankSettings
from lowrank.ranks.budget import Trial, for_target
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.scale import ranks_within
from lowrank.ranks.select import RULES, choose_ranks
from lowrank.ranks.sensitivity import shared_out

__all__ = [
    "RULES",
    "Candidate",
    "RankRule",
    "RankSettings",
    "Trial",
    "choose_ranks",
    "for_target",
    "leave_negligible",
    "ranks_within",
    "shared_out",
]
