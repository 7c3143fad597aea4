"""`methods.<name>.ranks`: how ranks are chosen, and the targets that they must meet."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank.settings.merging import merged
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
        description="Largest drop in validation accuracy after fine-tuning, in percentage points. "
        "The cheapest network within it is searched for, as set in `search`. Cannot be combined "
        "with the other targets.",
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


class SearchSettings(Section):
    """Search by bisection for the cheapest network that meets a target of `accuracy_drop`."""

    cost: str = Field(
        "latency_ms.local",
        pattern=r"^(macs|parameters|size_bytes|latency_ms\.[A-Za-z][A-Za-z0-9_]*)$",
        description="Cost to minimize: `macs`, `parameters`, `size_bytes` or "
        "`latency_ms.<device>`.",
    )
    between: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (
        Field((0.03, 0.3), description="Range of the search, as shares of the original's cost.")
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
        if not self.between[0] < self.between[1]:
            raise ValueError(f"`between` is {list(self.between)}; expected the smaller share first")
        return self

    @property
    def middle(self) -> float:
        """Geometric mean of the range."""
        return (self.between[0] * self.between[1]) ** 0.5


class RankSettings(Section):
    """The rule that chooses ranks, and the adjustments of the chosen ranks."""

    chooses = ("select",)

    select: Literal["vbmf", "energy", "ratio", "sensitivity", "budget", "fixed"] = Field(
        "vbmf",
        description="Rank rule. `vbmf`: the ranks that stand out of the noise in the weights. "
        "`energy`: a share of the squared norm. `ratio`: the same saving in each layer. "
        "`sensitivity`: by the loss that each layer causes. `budget`: the smallest loss within "
        "`target`. `fixed`: the ranks in `table`.",
    )
    target: Target | None = Field(
        None,
        description="For `select: budget`: limit on the network's cost, such as `{macs: 0.25}`, "
        "or on its accuracy drop.",
    )
    search: SearchSettings = SearchSettings()
    energy: float = Field(
        0.9, gt=0, le=1, description="For `select: energy`: share of the squared norm to keep."
    )
    ratio: float = Field(
        4.0,
        gt=1,
        description="For `select: ratio` and `sensitivity`: original cost divided by the cost of "
        "the factors.",
    )
    cost: Literal["macs", "parameters"] = Field("macs", description="Cost that `ratio` refers to.")
    trial_ratio: float = Field(
        4.0,
        gt=1,
        description="For `select: sensitivity`: `ratio` at which each layer is decomposed alone "
        "to measure its loss.",
    )
    images: int = Field(
        500,
        ge=1,
        description="For `select: sensitivity` and `budget`: number of validation images on which "
        "losses are measured.",
    )
    table: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(
        default_factory=dict, description="For `select: fixed`: ranks of one group, by layer name."
    )
    weaken: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the distance from the rule's rank to full rank that is added to the "
        "rank. 0: the rule's rank. 1: full rank.",
    )
    multiple_of: int = Field(
        1, ge=1, le=256, description="Round each rank to a multiple of this number."
    )
    rounding: Literal["nearest", "down", "up"] = Field(
        "nearest",
        description="Direction of rounding to a multiple. The result is never below `minimum` or "
        "above full rank.",
    )
    minimum: int = Field(
        1, ge=1, description="Smallest rank. A layer with a smaller full rank gets its full rank."
    )
    negligible: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="The cheapest layers stay dense, as long as together they have at most this "
        "share of the network's MACs and of its parameters. Not for `select: fixed`, whose "
        "table names its layers.",
    )
    largest_drop: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of the accuracy above chance that the ranks of a round may "
        "cost before fine-tuning, as measured on validation images. A larger drop is an error. "
        "1: no limit.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "RankSettings":
        if self.select == "fixed" and not self.table:
            raise ValueError("`select: fixed` needs `table`, ranks by layer")
        if self.select == "budget" and not self.target:
            raise ValueError("`select: budget` needs `target`, such as `{macs: 0.25}`")
        return self

    def unused(self) -> dict[str, str]:
        """Return the settings without effect and why: `search` too if nothing is searched for."""
        reasons = super().unused()
        if not self.searches:
            reasons.setdefault("search", "needs `target: {accuracy_drop: ...}`")
        return reasons

    @property
    def searches(self) -> bool:
        """True if ranks are found by trials, for a target of accuracy."""
        return self.target is not None and self.target.accuracy_drop is not None

    @property
    def costs(self) -> Target | None:
        """The target; if ranks are found by trials, a target in the middle of the search range."""
        return Target.of(self.search.cost, self.search.middle) if self.searches else self.target

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices whose latencies the target limits."""
        return tuple(self.costs.latency_ms) if self.costs else ()

    @property
    def looks_at_all_layers(self) -> bool:
        """True if the rule chooses the ranks of all layers before the first round."""
        return self.select in ("sensitivity", "budget")


class MethodRankSettings(RankSettings):
    """The rule by which a method chooses ranks, in general and for single networks."""

    models: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Entries for one network, which replace the general ones, such as `resnet20: "
        "{weaken: 0.5}`. Mappings are merged, and null resets an entry to its default.",
    )

    def entries_of(self, model: str) -> dict[str, Any]:
        """Return the unchecked entries that apply to one network."""
        general = self.model_dump(exclude_unset=True, exclude={"models"})
        return merged(general, self.models.get(model, {}))
