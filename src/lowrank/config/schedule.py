"""`methods.<name>.schedule`: which layers each round takes."""

from typing import Literal

from pydantic import Field

from lowrank.config.section import Section


class ScheduleSettings(Section):
    """Which layers each round takes."""

    chooses = ("kind",)

    kind: Literal["one_shot", "iterative", "hybrid", "multi_stage"] = Field(
        "one_shot",
        description="`one_shot`: one round with every layer. `iterative`: a round for every "
        "`group` layers. `hybrid`: convolutions so, then all linear layers in one round. "
        "`multi_stage`: `stages` rounds with every layer, at falling ranks.",
    )
    group: int = Field(1, ge=1, description="Layers in one round of `iterative` and `hybrid`.")
    order: Literal["network", "reverse"] | tuple[str, ...] = Field(
        "network", description="First to last, last to first, or layers by name, these first."
    )
    stages: int = Field(1, ge=1, description="Rounds of `multi_stage`.")
