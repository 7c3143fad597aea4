"""One file for each way of choosing ranks."""

from lowrank.ranks.base import RankRule, RankSettings
from lowrank.ranks.select import RULES, choose_ranks

__all__ = ["RULES", "RankRule", "RankSettings", "choose_ranks"]
