"""`methods.<name>.schedule`: the layers of each round."""

from typing import Literal

from pydantic import Field

from lowrank.settings.section import Section


class ScheduleSettings(Section):
    """The layers of each round."""

    chooses = ("kind",)

    kind: Literal["one_shot", "iterative", "hybrid", "multi_stage"] = Field(
        "one_shot",
        description="`one_shot`: one round with all layers. `iterative`: one round for every "
        "`group` layers. `hybrid`: convolutions as in `iterative`, then all linear layers in "
        "one round. `multi_stage`: `stages` rounds, each with all layers, at decreasing ranks.",
    )
    group: int = Field(
        1, ge=1, description="Number of layers in one round of `iterative` and `hybrid`."
    )
    order: Literal["network", "reverse"] | tuple[str, ...] = Field(
        "network",
        description="Order of the layers. `network`: first to last. `reverse`: last to first. A "
        "list of names: these layers first.",
    )
    stages: int = Field(1, ge=1, description="Number of rounds of `multi_stage`.")
