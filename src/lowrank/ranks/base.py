"""What the ways of choosing ranks share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank.errors import UserError
from lowrank.factorize import Factorization
from lowrank.plan import Layer


@dataclass(frozen=True)
class RankSettings:
    """How ranks are chosen, and what they are held to afterwards.

    Parameters
    ----------
    select
        The rule: a name in `lowrank.ranks.RULES`.
    weaken
        How far to go from the rule's ranks (0, as in the paper) towards the full ranks (1).
    multiple_of
        Ranks are multiples of this, for the vector width of a device.
    minimum
        No rank is below this.

    Raises
    ------
    UserError
        For a number out of its range.
    """

    select: str = "vbmf"
    weaken: float = 0.0
    multiple_of: int = 1
    minimum: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weaken <= 1:
            raise UserError(
                f"weaken: found {self.weaken}, expected a number from 0 (the rule's own ranks) to "
                "1 (full ranks). Give one in that range."
            )
        for name in ("multiple_of", "minimum"):
            if (found := getattr(self, name)) < 1:
                raise UserError(
                    f"{name}: found {found}, expected a whole number from 1. Give 1 to switch it "
                    "off."
                )


# From a layer, its kernel (T, S / g, D_h, D_w), a factorization and the settings to the ranks of
# one group. A rank of 0 leaves the layer dense; ranks too high are seen to afterwards.
RankRule = Callable[[Layer, np.ndarray, Factorization, RankSettings], tuple[int, ...]]
