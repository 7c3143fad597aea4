"""Settings that rank rules share, and the adjustments of the ranks that a rule chooses."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from lowrank.core.layers import PlainLayer
from lowrank.settings.section import Section

# `multiple_of: auto`: multiples for wide and for narrow layers, and the channels of a wide layer.
_WIDE, _NARROW, _WIDE_CHANNELS = 16, 8, 64


class RankSettings(Section):
    """Settings of every rank rule. A subclass has `select`, the name of its rule, as a literal."""

    select: str = Field(description="Rank rule.")
    multiple_of: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        1,
        description="Round each rank to a multiple of this number. `auto`: of 16, the width of "
        "vector units in int8, or of 8 in a layer with fewer than 64 channels, where multiples of "
        "16 leave few choices.",
    )
    rounding: Literal["nearest", "down", "up"] = Field(
        "nearest",
        description="Direction of rounding to a multiple. The result is never below `minimum` or "
        "above full rank.",
    )
    minimum: int = Field(
        1, ge=1, description="Smallest rank. A layer with a smaller full rank gets its full rank."
    )
    largest_drop: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of the metric above chance that the ranks of a round may "
        "cost before fine-tuning, as measured on validation images. A larger drop is an error. "
        "1: no limit.",
    )

    def multiple_for(self, layer: PlainLayer) -> int:
        """Return the number of which the ranks of a layer are multiples."""
        if self.multiple_of != "auto":
            return self.multiple_of
        is_wide = max(layer.in_channels, layer.out_channels) >= _WIDE_CHANNELS
        return _WIDE if is_wide else _NARROW

    @property
    def weakening(self) -> float:
        """Share of the distance to full rank that is added to the rule's ranks."""
        return 0.0

    @property
    def negligible_share(self) -> float:
        """Share of the network's cost that the layers which stay dense as too cheap may have."""
        return 0.0

    @property
    def measured_images(self) -> int:
        """Number of validation images on which losses are measured."""
        return 500

    @property
    def named_layers(self) -> Collection[str]:
        """Layers that the settings name."""
        return ()

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices whose latencies the rule needs."""
        return ()

    @property
    def trials(self) -> int:
        """Number of networks that a search for the ranks compresses; 0 if nothing is searched."""
        return 0

    @property
    def searches(self) -> bool:
        """True if ranks are found by trials, for a target of accuracy."""
        return self.trials > 0


class WeakenedSettings(RankSettings):
    """Settings of a rule whose ranks can be raised toward full rank."""

    weaken: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the distance from the rule's rank to full rank that is added to the "
        "rank. 0: the rule's rank. 1: full rank.",
    )

    @property
    def weakening(self) -> float:
        return self.weaken


class NegligibleSettings(RankSettings):
    """Settings of a rule that leaves the cheapest layers dense."""

    negligible: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="The cheapest layers stay dense, as long as together they have at most this "
        "share of the network's MACs and of its parameters.",
    )

    @property
    def negligible_share(self) -> float:
        return self.negligible


class AdjustedSettings(NegligibleSettings, WeakenedSettings):
    """Settings of a rule with all adjustments; most rules have them."""
