"""The meaning, unit and bounds of every parameter in params.yaml."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lowrank.config.checkpoint import NetworkSource
from lowrank.config.choices import BUDGETS, CHOICES, misplaced
from lowrank.config.document import Document, Place, read_document
from lowrank.config.merging import merged
from lowrank.config.mistakes import NAME, described, nearest, refused, shown
from lowrank.errors import UserError

Threads = Annotated[
    int,
    Field(
        ge=1,
        le=1024,
        description="CPU threads of the step, whatever --cores is: others round differently.",
    ),
]
BatchSize = Annotated[int, Field(ge=1)]


def _form(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


_Value = TypeVar("_Value")
OneOrSeveral = Annotated[
    Annotated[_Value, Tag("one")]
    | Annotated[tuple[_Value, ...], Field(min_length=1), Tag("several")],
    Discriminator(_form),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(description="bfloat16 autocast where the hardware has it, by `auto`."),
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="A GPU, by `auto`.")]
Name = Annotated[str, Field(pattern=NAME)]


def _ordinary(path: str) -> str:
    if not path or path.startswith("-") or any(ord(each) < 32 or ord(each) == 127 for each in path):
        raise ValueError(
            f"{path!r} is no path that can be used: it is empty, begins with '-' or holds control "
            "characters"
        )
    return path


# A path goes into commands and files that programs of all kinds read.
OwnPath = Annotated[str, AfterValidator(_ordinary)]


class Section(BaseModel):
    """A part of params.yaml: no key that is not described here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The settings on which it depends which of the others are used; see `CHOICES`.
    chooses: ClassVar[tuple[str, ...]] = ()

    def unused(self) -> dict[str, str]:
        """The settings that the choices made beside them do not use, and where they belong."""
        found, names = {}, list(type(self).model_fields)
        for setting in self.chooses:
            value = getattr(self, setting)
            without = misplaced(setting, value, names)
            taken = [f"`{each}`" for each in names if each not in (setting, *without)]
            for name in without:
                users = [f"`{setting}: {user}`" for user in CHOICES[setting][name]]
                belongs = (
                    f"belongs to {' or '.join(users)}, not to"
                    if len(users) < 3
                    else ("does not go with")
                )
                found[name] = (
                    f"{belongs} `{setting}: {value}`, which takes {', '.join(taken) or 'no others'}"
                )
        return found

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Refuse settings that would have no effect."""
        for name, reason in self.unused().items():
            if name in self.model_fields_set:
                raise PydanticCustomError(
                    "misplaced", "`{name}` {reason}", {"name": name, "reason": reason}
                )
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what has no effect, so that a written section can be read again."""
        unused = self.unused()
        return {name: value for name, value in write(self).items() if name not in unused}


class Matrix(Section):
    """What `snakemake` and `dvc repro` build when no target is named: every model x method."""

    models: tuple[Name, ...] = Field(min_length=1, description="Names under `checkpoint`.")
    methods: tuple[Name, ...] = Field(min_length=1, description="Names under `methods`.")
    devices: tuple[Name, ...] = Field(min_length=1, description="Names under `benchmark`.")


class DatasetSettings(Section):
    """Labelled images: a dataset that is known by name, or folders of image files."""

    kind: Literal["cifar10", "fashion_mnist", "imagefolder"] | None = Field(
        None, description="What it is; null: what the entry's own name says."
    )
    search: OwnPath = Field("data", description="Folder for files that you fetched by hand.")
    train: OwnPath | None = Field(
        None, description="Of `imagefolder`: a folder with a sub-folder of images for each class."
    )
    validation: OwnPath | None = Field(
        None, description="Of `imagefolder`: such a folder of images that are only reported."
    )
    skip_unreadable: bool = Field(
        False, description="Leave out (and name) image files that cannot be decoded."
    )
    store_pixels: int = Field(
        256, ge=1, le=8192, description="Larger images are stored with this shorter side."
    )
    cache_gib: float = Field(
        8.0, ge=0, description="Decoded images are stored where they take no more GiB than this."
    )
    outputs: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None, description="The network's output for each class; null: its outputs are the classes."
    )
    threads: int = Field(
        2, ge=1, le=1024, description="CPU threads that decode images; any number gives the same."
    )

    def kind_of(self, name: str) -> str:
        """The kind of the entry `name`. Raises ValueError where it lacks one, or its folders."""
        kind = self.kind or name
        known = ("cifar10", "fashion_mnist", "imagefolder")
        if kind not in known:
            raise ValueError(f"`dataset.{name}.kind` is missing; it is one of {', '.join(known)}")
        if (kind == "imagefolder") != (self.train is not None):
            verb = "needs" if kind == "imagefolder" else "takes no"
            raise ValueError(f"`dataset.{name}` of kind {kind} {verb} `train` and `validation`")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSettings":
        if (self.train is None) != (self.validation is None):
            raise ValueError("`train` and `validation` come together")
        taken = list((self.outputs or {}).values())
        if twice := [output for output in taken if taken.count(output) > 1]:
            raise ValueError(f"`outputs` gives output {twice[0]} to two classes")
        return self


class ValidationSettings(Section):
    """Which images choices are made on: ranks, searches, int8 tolerance, early stopping."""

    from_: Literal["train", "test"] = Field(
        "train",
        alias="from",
        description="`train`: held out of the training images. `test`: drawn from the test images, "
        "of which only the rest is reported; for weights that were trained on every training "
        "image.",
    )
    images: int | None = Field(
        None,
        ge=1,
        description="How many of those. Default: 5000, but at most a tenth of the training images "
        "or half of the test images.",
    )
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="Instead: a folder of your own images with a sub-folder for each class.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ValidationSettings":
        if self.folder is not None and self.model_fields_set & {"from_", "images"}:
            raise ValueError(
                "`folder` goes with no other entry: all of its images are validation images"
            )
        return self

    def to_document(self) -> dict[str, Any]:
        """The entry as it stands in params.yaml, without what is left at its default."""
        if self.folder is not None:
            return {"folder": self.folder}
        return {"from": self.from_} | ({} if self.images is None else {"images": self.images})


class CheckpointSettings(NetworkSource, Section):
    """A trained network: how it is built, its weights, and the images that it is for."""

    dataset: Name = Field(description="A name under `dataset`.")
    weights: OwnPath = Field(
        description="File of trained weights: .safetensors, .pth, .pt, .pth.tar, .ckpt, .bin or "
        ".caffemodel. With "
        "`torchvision_weights`, data/weights/<model>.pth is downloaded when it is missing."
    )
    validation: ValidationSettings = ValidationSettings()
    state_key: str | None = Field(
        None,
        min_length=1,
        description="Which weights of a PyTorch file that holds several, such as `model_ema`. "
        "Default: those as trained, not averaged ones.",
    )
    threads: Threads = 2


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


_CONVOLUTION = (
    "tucker1", "tucker2", "cp_tpm", "cp_als", "cp4", "svd", "channel_svd", "spatial_svd",
    "block_term2", "block_term4", "block_term8",
)  # fmt: skip
_Convolution = Literal[_CONVOLUTION]  # type: ignore[valid-type]


class FactorizeSettings(Section):
    """Which factorization each kind of layer gets; null leaves the kind dense."""

    chooses = ("norm",)

    first_conv: _Convolution | None = Field(
        None, description="The network's first convolution, which has few input channels."
    )
    conv: _Convolution | None = Field(
        None, description="The other convolutions, of any kernel but 1 x 1."
    )
    pointwise_conv: Literal["svd"] | None = Field(None, description="Convolutions of 1 x 1.")
    flattened_linear: _Convolution | None = Field(
        None,
        description="A linear layer behind a flattened map, seen as a convolution over that map; "
        "null: as `linear`.",
    )
    linear: Literal["svd"] | None = Field(None, description="Linear layers.")
    norm: Literal["weight", "activation"] = Field(
        "weight",
        description="What the factors keep at their ranks: `weight`, the kernel; `activation`, the "
        "layer's outputs on training images.",
    )
    images: int = Field(
        1000, ge=1, description="For `activation`: training images; their labels are not used."
    )
    sequential: bool = Field(
        False,
        description="For `activation`: one layer after the other, each by its inputs behind those "
        "before it as they are then, to answer as in the original network. Not side by side.",
    )
    alternatives: tuple[_Convolution, ...] = Field(
        (),
        description="For `select: budget`: further factorizations, of which a convolution larger "
        "than 1 x 1 gets the one that loses least for its cost.",
    )
    include: tuple[str, ...] = Field(
        ("*",), description="Take layers whose name fits one of these; as in a shell: `*`, `?`."
    )
    exclude: tuple[str, ...] = Field((), description="But none whose name fits one of these.")

    def by_kind(self) -> dict[str, str | None]:
        """Factorization by kind of layer."""
        others = {"norm", "images", "sequential", "alternatives", "include", "exclude"}
        return self.model_dump(exclude=others)


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


class Augmentation(Section):
    """What is done to a training image at random."""

    pad_pixels: int = Field(4, ge=0, le=64, description="Largest random translation, in pixels.")
    flip: bool = Field(True, description="Mirror horizontally, every other epoch.")
    cutout_pixels: int = Field(
        0, ge=0, le=1024, description="Side of a square that is greyed out, in pixels; 0: none."
    )
    resized_crop: tuple[float, float] | None = Field(
        None,
        description="Bounds of a random crop's share of the image's area, instead of translation; "
        "null: none.",
    )

    @property
    def changes(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return bool(self.pad_pixels or self.flip or self.cutout_pixels or self.resized_crop)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "Augmentation":
        if self.resized_crop and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(
                f"`resized_crop` is {list(self.resized_crop)}; two shares in ascending order, "
                "above 0 and at most 1, were expected"
            )
        return self


class Freezing(Section):
    """Leaving the first layers as they are for the rest of the steps, which then cost less."""

    layers: float = Field(
        0.0, ge=0, lt=1, description="Share of the layers, the first to run; 0: none."
    )
    after: float = Field(0.3, ge=0, lt=1, description="Share of the steps that train them all.")


class TrainingSettings(Section):
    """A budget, an optimizer and its schedule; shared by pre-training and fine-tuning."""

    chooses = ("schedule", "optimizer")

    steps: int | None = Field(None, ge=0, description="Budget in steps (this or `epochs`).")
    epochs: float | None = Field(None, gt=0, description="Budget in passes over the images.")
    batch_size: int = Field(128, ge=1, description="Images in one step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD is with Nesterov momentum.")
    learning_rate: float = Field(gt=0, le=100, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, le=10, description="On kernels and matrices alone.")
    schedule: Literal["cosine", "linear", "step", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="For `schedule: step`: fractions of the budget where it falls."
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="For `schedule: step`: by how much.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the budget.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread out.")
    average_last: float = Field(
        0.0, ge=0, le=1, description="Share of the steps whose weights are averaged; 0: the last's."
    )
    freeze: Freezing = Freezing()
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    augment: Augmentation = Augmentation()
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2
    seed: int = Field(
        0, ge=0, lt=2**32, description="Of the weights, the order and the augmentation."
    )
    curve_every_steps: int = Field(50, ge=1, description="A point of the curve, in steps.")
    validate_every_steps: int | None = Field(
        None, ge=1, description="A validation accuracy on the curve; a multiple of the above."
    )

    @property
    def trains(self) -> bool:
        """Whether there is any step to take."""
        return any(getattr(self, name) for name in self._budgets)

    @property
    def _budgets(self) -> list[str]:
        return ["steps", "epochs"]

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        given = [name for name in self._budgets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give the budget as one of {', '.join(f'`{name}`' for name in self._budgets)}; "
                f"found {' and '.join(given) or 'none'}"
            )
        if self.validate_every_steps and self.validate_every_steps % self.curve_every_steps:
            raise ValueError(
                f"`validate_every_steps` ({self.validate_every_steps}) must be a multiple of "
                f"`curve_every_steps` ({self.curve_every_steps})"
            )
        return self


class Distillation(Section):
    """Learning from the original network's outputs."""

    weight: float = Field(
        0.0, ge=0, le=1, description="Share of the loss; 0: labels alone, 1: no labels at all."
    )
    temperature: float = Field(
        4.0, gt=0, le=100, description="Outputs are divided by it before they are compared."
    )
    images: Literal["plain", "augmented"] = Field(
        "plain",
        description="Its outputs for the images as they are, computed once; or as augmented, "
        "computed in each step, which then costs its forward pass, too.",
    )
    maps: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Within that share, beside the outputs: the weight of the relative squared "
        "error of each feature map (`teacher_outputs.maps`); 0: none.",
    )


class RoundSettings(TrainingSettings):
    """Training after one round."""

    distill: Distillation = Distillation()

    @property
    def learns_stored_maps(self) -> bool:
        """Whether feature maps are compared that `teacher_outputs` stored."""
        return bool(self.distill.weight and self.distill.maps) and self.distill.images == "plain"

    @model_validator(mode="after")
    def _maps_in_place(self) -> "RoundSettings":
        augment = self.augment
        if self.learns_stored_maps and (
            augment.pad_pixels or augment.cutout_pixels or augment.resized_crop
        ):
            raise ValueError(
                "`distill.maps` with `distill.images: plain` compares stored feature maps, which "
                "do not fit moved or cut images. Set `augment` to `{pad_pixels: 0, cutout_pixels: "
                "0, resized_crop: null}`, or `distill.maps: 0`, or `distill.images: augmented`"
            )
        return self


class FinetuneSettings(RoundSettings):
    """Training after each round; the budget is one round's, or that of all rounds together."""

    total_steps: int | None = Field(
        None, ge=0, description="Budget of all rounds together, in steps."
    )
    last_share: float = Field(
        0.5, gt=0, le=1, description="Share of `total_steps` that the last of several rounds gets."
    )

    def of_round(self, number: int, rounds: int) -> RoundSettings:
        """The training of round `number` (from 1).

        Of `total_steps` the last round gets its share, and the others divide the rest evenly.
        """
        settings = self.model_dump(exclude={"total_steps", "last_share"})
        if self.total_steps is not None:
            last = round(self.last_share * self.total_steps) if rounds > 1 else self.total_steps
            before = self.total_steps - last
            settings["steps"] = (
                last
                if number == rounds
                else before * number // (rounds - 1) - before * (number - 1) // (rounds - 1)
            )
        return RoundSettings.model_validate(settings)

    @property
    def _budgets(self) -> list[str]:
        return [*super()._budgets, "total_steps"]

    def unused(self) -> dict[str, str]:
        """Return the keys without effect here: `last_share` too where each round has a budget."""
        found = super().unused()
        if self.total_steps is None:
            found["last_share"] = "needs `total_steps`, the budget of all rounds together"
        return found


class PretrainSettings(TrainingSettings):
    """A recipe for a checkpoint."""

    start: OwnPath | None = Field(
        None, description="Weights to go on from (a warm restart); null: random ones."
    )


class MethodSettings(Section):
    """A method is only data: factorizations, rank rule, schedule, and its own fine-tuning."""

    factorize: Annotated[
        FactorizeSettings | None, AfterValidator(lambda found: found or FactorizeSettings())
    ] = Field(
        FactorizeSettings(),
        description="Factorization by kind of layer; null or absent: all layers stay dense, for a "
        "control or for int8 alone.",
    )
    ranks: MethodRankSettings = MethodRankSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    finetune: dict[str, Any] = Field(
        default_factory=dict,
        description="Entries that replace those of `finetune`; under `models`, for one network. "
        "Mappings are merged, and null takes an entry back to its default.",
    )
    quantize: Literal["int8"] | None = Field(
        None, description="Of the exported network; null: float alone."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MethodSettings":
        rules = {self.ranks.select} | {
            each["select"] for each in self.ranks.models.values() if "select" in each
        }
        if self.factorize.alternatives and rules != {"budget"}:
            raise ValueError("`factorize.alternatives` needs `ranks.select: budget`")
        if self.ranks.searches and self.schedule.kind != "one_shot":
            raise ValueError(
                "`ranks.target.accuracy_drop` needs `schedule: {kind: one_shot}`: a trial is one "
                f"round, not those of '{self.schedule.kind}'"
            )
        return self

    @model_validator(mode="after")
    def _finetune_of_models(self) -> "MethodSettings":
        models = self.finetune.get("models", {})
        if not isinstance(models, Mapping):
            raise ValueError(
                f"`finetune.models` is {shown(models)}; entries by network, such as "
                "`{resnet20: {steps: 500}}`, were expected"
            )
        for name, entries in models.items():
            if not isinstance(entries, Mapping):
                raise ValueError(
                    f"`finetune.models.{name}` is {shown(entries)}; entries of `finetune`, such as "
                    "`{steps: 500}`, were expected"
                )
        return self

    def of_models(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What differs for one network, by section and network."""
        return {"ranks": self.ranks.models, "finetune": self.finetune.get("models", {})}


class StudySettings(Section):
    """A comparison: methods that differ in one thing, on the same networks.

    Each variant is the base with entries replaced; see `lowrank.config.merging.merged`.
    """

    title: str = Field(description="Heading of the table and of the picture.")
    models: tuple[Name, ...] = Field(min_length=1, description="Names under `checkpoint`.")
    x: Literal["variant", "steps"] = Field(
        "variant", description="Axis of the picture: a bar for each variant, or steps of training."
    )
    base: dict[str, Any] = Field(description="A method, as under `methods`.")
    variants: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="What each variant replaces of the base."
    )

    def methods(self, study: str) -> dict[str, dict[str, Any]]:
        """The variants as entries of `methods`, named by the study and themselves."""
        return dict(self.methods_of_variants(study).values())

    def methods_of_variants(self, study: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """The name and the entry of each variant's method."""
        return {
            variant: (f"{study}_{variant}", merged(self.base, entries))
            for variant, entries in self.variants.items()
        }


class SelectRanksSettings(Section):
    """Of the step, not of the rule."""

    threads: Threads = 1


class CalibrateSettings(Section):
    """Of the layers' inputs on training images, for `norm: activation`."""

    threads: Threads = 2


class DecomposeSettings(Section):
    """Of each layer's job; the jobs run side by side under --cores."""

    threads: Threads = 1


class TeacherOutputsSettings(Section):
    """Of the original's outputs for the training images, for `distill`."""

    mirrored: bool = Field(
        False,
        description="Also for the mirrored images, for `augment.flip`: twice the time and room.",
    )
    maps: int = Field(
        2,
        ge=0,
        le=100,
        description="Feature maps stored beside the logits, the deepest, at most 4 x 4 pixels.",
    )
    maps_mebibytes: int = Field(
        1024, ge=1, description="Room for those of all training images; fewer maps where less."
    )
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2


class ExportSettings(Section):
    """Of the ONNX file, and of its check against PyTorch on real images."""

    threads: Threads = 2
    images: int = Field(
        2000, gt=0, description="Images of the test split that both run, to compare their logits."
    )


class QuantizeSettings(Section):
    """Of methods with `quantize`: 8-bit weights and activations, by ONNX Runtime."""

    chooses = ("calibration",)

    images: int = Field(
        500, ge=1, description="Training images that show how large activations are; no labels."
    )
    calibration: Literal["minmax", "entropy", "percentile"] = Field(
        "minmax",
        description="What of the activations is kept: all, the range of least divergence, or "
        "`percentile` of them.",
    )
    percentile: float = Field(99.99, gt=50, le=100, description="For `percentile`: per cent.")
    activations: Literal["auto", "int8", "uint8"] = Field(
        "auto",
        description="Type of the activations. `auto`: what each device runs in integer kernels, "
        "int8 on ARM and uint8 elsewhere.",
    )
    reduce_range: Literal["auto"] | bool = Field(
        "auto",
        description="Weights of 7 bits. `auto`: for x86 processors without VNNI, whose sums of 8 "
        "bits saturate.",
    )
    tolerance: float = Field(
        0.3,
        ge=0,
        le=100,
        description="Points of validation accuracy. Where int8 loses more, the most sensitive "
        "layers stay in float until it does not.",
    )
    sensitivity_images: int = Field(
        500, ge=1, description="Validation images on which that is measured."
    )
    search_seconds: float = Field(
        300.0,
        ge=0,
        description="How long the search for them may take, for each file; the best file so far "
        "stays. 0: none.",
    )
    by_time: bool = Field(
        True,
        description="Whether nodes that are slower in int8 than in float, by the clock of the "
        "device, stay in float. `times.json` beside the file holds the measurement.",
    )
    threads: Threads = 2


class DeviceSettings(Section):
    """A device that models are measured on."""

    kind: Literal["local", "ssh"] = Field(
        "local",
        description="`local`: the machine that runs the step; `ssh`: another one, with Python 3.9 "
        "or later, NumPy and onnxruntime.",
    )
    host: str | None = Field(
        None,
        # Never an option of the client; see lowrank.devices.ssh.
        pattern=r"^[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*$",
        description="For `ssh`: its name for the SSH client (~/.ssh/config).",
    )
    python: OwnPath | None = Field(None, min_length=1, description="For `ssh`: Python over there.")
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="For `ssh`: what is sent is kept below it (~/.cache/lowrank).",
    )
    command: str | None = Field(
        None,
        min_length=1,
        description="For `ssh`: the OpenSSH client (`ssh`), with `-F`, `-i`, `-p`.",
    )
    threads: OneOrSeveral[Threads] = Field(
        1,
        description="Inside an operator; of a list each is measured, the first for the targets.",
    )
    batch_size: OneOrSeveral[BatchSize] = Field(
        1, description="Images in one run; a list likewise, with each number of threads."
    )
    optimization: Literal["all", "extended", "basic", "none"] = Field(
        "all", description="Level of ONNX Runtime's graph optimisation."
    )
    sittings: int = Field(
        5,
        ge=1,
        description="Processes among which a measurement is divided: where a model lies in memory "
        "is luck that lasts as long as one.",
    )
    turn_runs: int = Field(
        10,
        ge=1,
        description="Runs of one model before the other's turn. The first finds the processor's "
        "caches full of the other and is not counted; 1: it is, as if other work ran in between.",
    )
    repeats: int = Field(50, ge=2, description="At least so many runs of each that count.")
    seconds: float = Field(2.0, gt=0, description="At least so long for both models together.")
    warmup_seconds: float = Field(
        0.5,
        ge=0,
        description="Before measuring, for each model in each sitting; up to ten times as long, "
        "until it runs evenly.",
    )
    energy_seconds: float = Field(
        5.0,
        ge=0,
        description="For counting energy, where the device has a counter: of each model, and of "
        "none before and after; 0: not counted.",
    )
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime execution provider.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> "DeviceSettings":
        if self.kind == "ssh" and self.host is None:
            raise ValueError("`kind: ssh` needs `host`, the name of the machine for the SSH client")
        for name in ("host", "python", "folder", "command"):
            if self.kind != "ssh" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for `kind: ssh`, and this device is `{self.kind}`")
        return self

    def to_json(self) -> str:
        """As the steps take it: without what belongs to other kinds."""
        return self.model_dump_json(exclude_none=True)

    def connection_json(self) -> str:
        """Which machine it is and how it is reached, without how it measures."""
        names = {"kind", "host", "python", "folder", "command"}
        return self.model_dump_json(exclude_none=True, include=names)


class Params(Section):
    """The whole of params.yaml."""

    matrix: Matrix
    dataset: dict[Name, DatasetSettings]
    checkpoint: dict[Name, CheckpointSettings]
    methods: dict[Name, MethodSettings]
    select_ranks: SelectRanksSettings = SelectRanksSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    decompose: DecomposeSettings = DecomposeSettings()
    teacher_outputs: TeacherOutputsSettings = TeacherOutputsSettings()
    finetune: FinetuneSettings
    export_onnx: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    benchmark: dict[Name, DeviceSettings]
    pretrain: dict[Name, PretrainSettings] = Field(default_factory=dict)
    studies: dict[Name, StudySettings] = Field(default_factory=dict)

    def ranks_of(self, model: str, method: str) -> RankSettings:
        """How a method chooses the ranks of one network."""
        return RankSettings.model_validate(self.ranks_entries(model, method))

    def ranks_entries(self, model: str, method: str) -> dict[str, Any]:
        """The entries of that, not checked."""
        return self.methods[method].ranks.entries_of(model)

    def trial_of(self, method: str) -> tuple[str, int] | None:
        """The method that searches by this one, and which of its trials it is; None: of none."""
        for name, settings in self.methods.items():
            for number in range(1, settings.ranks.search.trials + 1):
                if settings.ranks.searches and method == trial_name(name, number):
                    return name, number
        return None

    def is_int8_alone(self, method: str) -> bool:
        """Whether a method only quantizes: it factors nothing, and names no budget of training.

        A variant of a study never is: its control is trained by the budget of the others.
        """
        settings = self.methods[method]
        factors = any(settings.factorize.by_kind().values())
        budgets = BUDGETS & settings.finetune.keys()
        studied = any(method in study.methods(name) for name, study in self.studies.items())
        return settings.quantize is not None and not factors and not budgets and not studied

    @property
    def searching(self) -> list[str]:
        """The methods that find ranks by trials."""
        return [
            name
            for name, settings in self.methods.items()
            if settings.ranks.searches and not self.trial_of(name)
        ]

    def finetune_of(self, model: str, method: str) -> FinetuneSettings:
        """`finetune` with the entries that the method replaces, in general and for one network."""
        return FinetuneSettings.model_validate(self.finetune_entries(model, method))

    def finetune_entries(self, model: str, method: str) -> dict[str, Any]:
        """The entries of that, not checked."""
        general = self.finetune.model_dump(exclude_unset=True)
        of_method = dict(self.methods[method].finetune)
        of_model = of_method.pop("models", {}).get(model, {})
        entries = merged(general, of_method)
        if self.is_int8_alone(method):
            entries = merged(entries, {"steps": 0})
        return merged(entries, of_model)

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        for name, settings in self.dataset.items():
            try:
                settings.kind_of(name)
            except ValueError as error:
                raise refused(str(error), "dataset", name) from None
        references = [
            ("matrix.models", self.matrix.models, "checkpoint", self.checkpoint),
            ("matrix.methods", self.matrix.methods, "methods", self.methods),
            ("matrix.devices", self.matrix.devices, "benchmark", self.benchmark),
        ]
        references += [
            (f"checkpoint.{name}.dataset", (settings.dataset,), "dataset", self.dataset)
            for name, settings in self.checkpoint.items()
        ]
        references += [
            (f"studies.{name}.models", settings.models, "checkpoint", self.checkpoint)
            for name, settings in self.studies.items()
        ]
        references += [
            (f"methods.{name}.{section}.models", tuple(models), "checkpoint", self.checkpoint)
            for name, settings in self.methods.items()
            for section, models in settings.of_models().items()
        ]
        for place, names, section, known in references:
            for name in names:
                if name not in known:
                    raise refused(
                        f"`{place}` names '{name}', which is not under `{section}`"
                        f"{nearest(name, known)}",
                        *place.split("."),
                    )
        return self


def trial_name(method: str, number: int) -> str:
    """What the trial `number` (from 1) of a method is called: a method of its own."""
    return f"{method}_trial{number}"


def parse_params(document: Mapping[str, Any] | Document) -> Params:
    """Check a configuration, and add the methods of its studies and searches.

    Raises UserError that names each wrong parameter, what was expected and, where it is known, the
    line.
    """
    file = document if isinstance(document, Document) else Document(document)
    entries: dict[str, Any] = dict(file.entries)
    origins: dict[str, Place] = {}
    try:
        params = Params.model_validate(entries)
        methods = dict(entries["methods"])
        entries["methods"] = methods
        origins |= {name: ("methods", name) for name in methods}
        for study, settings in params.studies.items():
            for variant, (name, method) in settings.methods_of_variants(study).items():
                _claim(file, origins, name, ("studies", study, "variants", variant))
                methods[name] = method
        params = Params.model_validate(entries)
        for name, settings in params.methods.items():
            if settings.ranks.searches:
                for number in range(1, settings.ranks.search.trials + 1):
                    trial = trial_name(name, number)
                    _claim(file, origins, trial, origins[name], f"trial {number} of ")
                    methods[trial] = methods[name]
        params = Params.model_validate(entries)
    except ValidationError as error:
        found = described(error, Params, entries, file=file, origins=origins)
        raise UserError(f"{file.source}: {found}") from error
    _check_names(file, params, origins)
    _check_resolved(file, params, origins)
    return params


def _claim(
    file: Document, origins: dict[str, Place], name: str, place: Place, of: str = ""
) -> None:
    """Note where a derived method is from. Raises UserError where another one has its name."""
    if name in origins:
        raise UserError(
            f"{file.source}: {of}{file.named(place)} is the method '{name}', and so is "
            f"{file.named(origins[name])}. Rename one of them."
        )
    origins[name] = place


# What stands beside networks in build/, and beside methods in build/<model>/ and in results.
_RESERVED = {
    "checkpoint": {
        "coverage",
        "devices",
        "first_run",
        "latencies",
        "moments",
        "pretrain",
        "resume",
    },
    "methods": {"original"},
}


def _check_names(file: Document, params: Params, origins: Mapping[str, Place]) -> None:
    """Raise UserError for a name that lowrank uses itself, and for two results of one name."""
    for section, reserved in _RESERVED.items():
        for name in getattr(params, section):
            if name in reserved:
                raise UserError(
                    f"{file.source}: {file.named((section, name))}: lowrank keeps files of its own "
                    f"under the name '{name}'. Choose another one."
                )
    results: dict[str, tuple[str, str]] = {}
    for pair in itertools.product(params.checkpoint, params.methods):
        name = "_".join(pair)
        if name in results:
            model, method = results[name]
            raise UserError(
                f"{file.source}: '{name}' is the result of `checkpoint.{model}` by "
                f"{file.named(origins[method])} and of `checkpoint.{pair[0]}` by "
                f"{file.named(origins[pair[1]])}. Rename a network or a method."
            )
        results[name] = pair


def _check_resolved(file: Document, params: Params, origins: Mapping[str, Place]) -> None:
    """Raise UserError where the settings of a method are wrong once merged for a network."""
    for method, settings in params.methods.items():
        if params.trial_of(method):
            continue
        for section, kind, resolve in (
            ("ranks", RankSettings, params.ranks_entries),
            ("finetune", FinetuneSettings, params.finetune_entries),
        ):
            for model in ("", *settings.of_models()[section]):
                found = resolve(model, method)
                try:
                    kind.model_validate(found)
                except ValidationError as error:
                    place = (section, "models", model) if model else (section,)
                    prefix = ("methods", method, *place)
                    clauses = described(
                        error, kind, found, prefix=prefix, file=file, origins=origins
                    )
                    raise UserError(f"{file.source}: {clauses}") from error
        for model in ("", *settings.of_models()["finetune"]):
            recipe = params.finetune_of(model, method)
            mirrors = recipe.learns_stored_maps and recipe.augment.flip
            if mirrors and not params.teacher_outputs.mirrored:
                raise UserError(
                    f"{file.source}: {file.named((*origins[method], 'finetune'))}: `distill.maps` "
                    "compares stored feature maps, and `augment.flip` mirrors images. Set "
                    "`teacher_outputs.mirrored: true`, or `distill.maps: 0`, or `augment.flip: "
                    "false`."
                )
        for model in settings.ranks.models:
            general, found = settings.ranks, params.ranks_of(model, method)
            trials = [each.search.trials if each.searches else None for each in (general, found)]
            if trials[0] != trials[1]:
                place = file.named((*origins[method], "ranks", "models", model))
                raise UserError(
                    f"{file.source}: {place}: a target of accuracy and the number of its trials "
                    "are those of all networks; make another method of it."
                )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml. Raises UserError when it is missing or wrong."""
    return parse_params(read_document(path))


def schema() -> str:
    """The JSON schema that stands in workflow/schemas/, for editors and for Snakemake."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"
