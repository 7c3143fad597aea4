"""Settings of the rank rule `budget`: the target, and the search for a target of accuracy."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank.ranks.rank_settings import NegligibleSettings
from lowrank.settings.section import Name, Section


class Target(Section):
    """Limits for the compressed network: costs as shares of the original's, or an accuracy drop."""

    macs: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Multiply-accumulates for one image, as a share of the original's.",
    )
    parameters: float | None = Field(
        None, gt=0, lt=1, description="Number of weights and biases, as a share of the original's."
    )
    size_bytes: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Size of the ONNX file, as a share of the original's. For methods with "
        "`quantize`: size of the int8 file.",
    )
    latency_ms: dict[Name, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="Latency of one run, as a share of the original's, by the name of a device "
        "under `benchmark`. For methods with `quantize`: latency of the int8 network.",
    )
    accuracy_drop: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="Largest drop of the task's metric on the validation images after fine-tuning, "
        "in its unit: percentage points for classification. The cheapest network within it is "
        "searched for, as set in `search`. Cannot be combined with the other targets.",
    )

    @classmethod
    def of(cls, cost: str, share: float) -> "Target":
        """Return a target for one cost: `macs`, `size_bytes`, `latency_ms.<device>`."""
        name, _, device = cost.partition(".")
        return cls.model_validate({name: {device: share} if device else share})

    @model_validator(mode="after")
    def _consistent(self) -> "Target":
        counts = (self.macs, self.parameters, self.size_bytes)
        costs = bool(self.latency_ms) or any(share is not None for share in counts)
        if not costs and self.accuracy_drop is None:
            raise ValueError(
                "give `macs`, `parameters`, `size_bytes` or `latency_ms`, as shares of the "
                "original's, or `accuracy_drop`"
            )
        if costs and self.accuracy_drop is not None:
            raise ValueError(
                "`accuracy_drop` cannot be combined with other entries: the cost to minimize is "
                "`search.cost`"
            )
        return self


_Range = tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]]


class SearchSettings(Section):
    """Search by bisection for the cheapest network that meets a target of `accuracy_drop`."""

    cost: str = Field(
        "latency_ms.local",
        pattern=r"^(macs|parameters|size_bytes|latency_ms\.[A-Za-z][A-Za-z0-9_]*)$",
        description="Cost to minimize: `macs`, `parameters`, `size_bytes` or "
        "`latency_ms.<device>`.",
    )
    between: _Range | None = Field(
        None,
        description="Range of the search, as shares of the original's cost. null: from the "
        "cheapest network that the ranks allow to the original network, in int8 for methods with "
        "`quantize`.",
    )
    trials: int = Field(
        3,
        ge=1,
        le=10,
        description="Number of networks that are compressed and fine-tuned. Each trial halves the "
        "range.",
    )
    confidence: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Number of standard errors that are added to a measured drop. A drop is "
        "measured on a few thousand validation images; the margin makes it hold for other "
        "images too.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> "SearchSettings":
        if self.between and not self.between[0] < self.between[1]:
            raise ValueError(f"`between` is {list(self.between)}; expected the smaller share first")
        return self

    @property
    def device(self) -> str | None:
        """The device whose latency is minimized; None for another cost."""
        return self.cost.partition(".")[2] or None


class BudgetSettings(NegligibleSettings):
    """The smallest loss within a target. Higher ranks would miss it, so there is no `weaken`."""

    select: Literal["budget"] = Field("budget", description="The smallest loss within `target`.")
    target: Target = Field(
        description="Limit on the network's cost, such as `{macs: 0.25}`, or on its accuracy drop."
    )
    search: SearchSettings = SearchSettings()
    images: int = Field(
        500, ge=1, description="Number of validation images on which losses are measured."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_target(cls, entries: Any) -> Any:
        if isinstance(entries, Mapping) and entries.get("target") is None:
            raise ValueError("`select: budget` needs `target`, such as `{macs: 0.25}`")
        return entries

    def unused(self) -> dict[str, str]:
        """Return the settings without effect and why: `search` if nothing is searched for."""
        reasons = super().unused()
        if not self.searches:
            reasons["search"] = "needs `target: {accuracy_drop: ...}`"
        return reasons

    @property
    def measured_images(self) -> int:
        return self.images

    @property
    def searches(self) -> bool:
        return self.target.accuracy_drop is not None

    @property
    def allowed_drop(self) -> float:
        """Largest loss of accuracy, in percentage points. Raises ValueError without a search."""
        if self.target.accuracy_drop is None:
            raise ValueError("the target limits the cost, so no accuracy drop is searched for")
        return self.target.accuracy_drop

    @property
    def trials(self) -> int:
        return self.search.trials if self.searches else 0

    def at_share(self, share: float) -> "BudgetSettings":
        """Return the settings of one trial: its target is a share of the cost to minimize."""
        return self.model_copy(update={"target": Target.of(self.search.cost, share)})

    @property
    def devices(self) -> tuple[str, ...]:
        if self.searches:
            return (self.search.device,) if self.search.device else ()
        return tuple(self.target.latency_ms)
