"""`methods.<name>.ranks`: how ranks are chosen, and the targets that they meet."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank.config.merging import merged
from lowrank.config.section import Name, Section


class Target(Section):
    """What the compressed network may cost, as shares of what the original costs, or lose."""

    macs: float | None = Field(None, gt=0, lt=1, description="Multiply-accumulates of one image.")
    parameters: float | None = Field(None, gt=0, lt=1, description="Weights and biases.")
    size_bytes: float | None = Field(
        None, gt=0, lt=1, description="Of the ONNX file; in int8, where the method has `quantize`."
    )
    latency_ms: dict[Name, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="Milliseconds of one run, by the device's name under `benchmark`; of the "
        "quantised network, where the method has `quantize`.",
    )
    accuracy_drop: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="Points of validation accuracy that may be lost after fine-tuning: the "
        "cheapest such network is searched for (`search`). Instead of the others.",
    )

    @classmethod
    def of(cls, cost: str, share: float) -> "Target":
        """A target of one cost, by its name: `macs`, `size_bytes`, `latency_ms.<device>`."""
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
                "`accuracy_drop` goes with no other entry: what is to be low is `search.cost`"
            )
        return self


class SearchSettings(Section):
    """For a target of `accuracy_drop`: how the cheapest network is found, by bisection."""

    cost: str = Field(
        "latency_ms.local",
        pattern=r"^(macs|parameters|size_bytes|latency_ms\.[A-Za-z][A-Za-z0-9_]*)$",
        description="What is to be low: `macs`, `parameters`, `size_bytes`, `latency_ms.<device>`.",
    )
    between: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (
        Field((0.03, 0.3), description="Shares of the original's cost that it is looked for in.")
    )
    trials: int = Field(
        3, ge=1, le=10, description="Networks that are made and fine-tuned; each halves the range."
    )
    confidence: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Standard errors that are added to a drop, which is that of some thousand "
        "validation images: so that it holds on others, too.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "SearchSettings":
        if not self.between[0] < self.between[1]:
            raise ValueError(f"`between` is {list(self.between)}; the smaller share comes first")
        return self

    @property
    def middle(self) -> float:
        """The share in the middle, by ratios."""
        return (self.between[0] * self.between[1]) ** 0.5


class RankSettings(Section):
    """How ranks are chosen, and what they are held to afterwards."""

    chooses = ("select",)

    select: Literal["vbmf", "energy", "ratio", "sensitivity", "budget", "fixed"] = Field(
        "vbmf", description="Rule: a file in src/lowrank/ranks/."
    )
    target: Target | None = Field(
        None, description="For `budget`: what the network may cost, `{macs: 0.25}`, or lose."
    )
    search: SearchSettings = SearchSettings()
    energy: float = Field(
        0.9, gt=0, le=1, description="For `energy`: share of the squared norm that is kept."
    )
    ratio: float = Field(
        4.0, gt=1, description="For `ratio` and `sensitivity`: original cost / cost of the factors."
    )
    cost: Literal["macs", "parameters"] = Field("macs", description="What `ratio` counts.")
    trial_ratio: float = Field(
        4.0, gt=1, description="For `sensitivity`: ratio at which a layer is tried alone."
    )
    images: int = Field(
        500,
        ge=1,
        description="For `sensitivity` and `budget`: validation images that losses are measured "
        "on.",
    )
    table: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(
        default_factory=dict, description="For `fixed`: ranks (of one group) by layer."
    )
    weaken: float = Field(
        0.0, ge=0, le=1, description="Share of the way from the rule's rank back to full rank."
    )
    multiple_of: int = Field(1, ge=1, le=256, description="Round each rank to a multiple of this.")
    rounding: Literal["nearest", "down", "up"] = Field(
        "nearest", description="Which multiple; never below `minimum` or above full rank."
    )
    minimum: int = Field(1, ge=1, description="No rank below this, unless full rank is.")
    negligible: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="The cheapest layers stay dense that together have at most this share of the "
        "network's MACs and of its parameters; not for `fixed`, whose table names its layers.",
    )
    largest_drop: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the accuracy above chance that the ranks of a round may cost before "
        "fine-tuning, as tried on validation images; more is an error. 1: anything goes.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "RankSettings":
        if self.select == "fixed" and not self.table:
            raise ValueError("`select: fixed` needs `table`, ranks by layer")
        if self.select == "budget" and not self.target:
            raise ValueError("`select: budget` needs `target`, such as `{macs: 0.25}`")
        return self

    def unused(self) -> dict[str, str]:
        """Return the keys that have no effect here: `search` too where nothing is searched for."""
        found = super().unused()
        if not self.searches:
            found.setdefault("search", "needs `target: {accuracy_drop: ...}`, which it looks for")
        return found

    @property
    def searches(self) -> bool:
        """Whether ranks are found by trials, for a target of accuracy."""
        return self.target is not None and self.target.accuracy_drop is not None

    @property
    def costs(self) -> Target | None:
        """The target; where ranks are found by trials, a cost that these may have."""
        return Target.of(self.search.cost, self.search.middle) if self.searches else self.target

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices whose latencies the target bounds."""
        return tuple(self.costs.latency_ms) if self.costs else ()

    @property
    def looks_at_all_layers(self) -> bool:
        """Whether the ranks of every layer are shared out before the first round."""
        return self.select in ("sensitivity", "budget")


class MethodRankSettings(RankSettings):
    """How a method chooses ranks, and what differs for one network."""

    models: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="For one network, entries that replace the others: `resnet20: {weaken: 0.5}`. "
        "Mappings are merged, and null takes an entry back to its default.",
    )

    def entries_of(self, model: str) -> dict[str, Any]:
        """The entries that apply to one network, not checked."""
        general = self.model_dump(exclude_unset=True, exclude={"models"})
        return merged(general, self.models.get(model, {}))
