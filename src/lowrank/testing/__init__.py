"""Public checks of the contracts of plug-ins, to be called in the tests of their packages."""

from lowrank.testing.device_checks import check_device
from lowrank.testing.factorization_checks import check_factorization
from lowrank.testing.rank_rule_checks import check_rank_rule
from lowrank.testing.task_checks import check_task

__all__ = ["check_device", "check_factorization", "check_rank_rule", "check_task"]
