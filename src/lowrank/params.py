"""The meaning, unit and bounds of every parameter in params.yaml."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lowrank.errors import UserError

Threads = Annotated[
    int,
    Field(
        ge=1,
        le=1024,
        description="CPU threads of the step, whatever --cores is: others round differently.",
    ),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A part of params.yaml: no key that is not described here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Matrix(Section):
    """What `snakemake` and `dvc repro` build when no target is named: every model x method."""

    models: tuple[Name, ...] = Field(min_length=1, description="Names under `checkpoint`.")
    methods: tuple[Name, ...] = Field(min_length=1, description="Names under `methods`.")
    devices: tuple[Name, ...] = Field(min_length=1, description="Names under `benchmark`.")


class DatasetSettings(Section):
    """Where a dataset may be found before anything is downloaded."""

    search: str = Field("data", description="Folder for files that you fetched by hand.")


class CheckpointSettings(Section):
    """A trained network."""

    dataset: Name = Field(description="A name under `dataset`.")
    weights: str = Field(description="File of trained weights: .safetensors, .pth or .pt.")
    threads: Threads = 2


class RankSettings(Section):
    """How ranks are chosen."""

    select: Literal["vbmf"] = Field("vbmf", description="Rule: a file in src/lowrank/ranks/.")
    weaken: float = Field(
        0.0, ge=0, le=1, description="Share of the way from the rule's rank back to full rank."
    )
    multiple_of: int = Field(1, ge=1, le=256, description="Round each rank to a multiple of this.")
    minimum: int = Field(1, ge=1, description="No rank below this, unless full rank is.")


class FactorizeSettings(Section):
    """Which factorization each kind of layer gets; null leaves the kind dense."""

    first_conv: Literal["tucker1", "tucker2"] | None = Field(
        None, description="The network's first convolution, which has few input channels."
    )
    conv: Literal["tucker1", "tucker2"] | None = Field(
        None, description="The other convolutions, of any kernel but 1 x 1."
    )
    pointwise_conv: Literal["svd"] | None = Field(None, description="Convolutions of 1 x 1.")
    linear: Literal["svd"] | None = Field(None, description="Linear layers.")


class ScheduleSettings(Section):
    """Which layers each round takes."""

    kind: Literal["one_shot", "iterative"] = Field(
        "one_shot", description="One round with every layer, or a round for every `group` layers."
    )
    group: int = Field(1, ge=1, description="Layers in one round of `iterative`.")


class Augmentation(Section):
    """What is done to a training image at random."""

    pad_pixels: int = Field(4, ge=0, le=64, description="Largest random translation, in pixels.")
    flip: bool = Field(True, description="Mirror horizontally, every other epoch.")
    cutout_pixels: int = Field(
        0, ge=0, le=1024, description="Side of a square that is greyed out, in pixels; 0: none."
    )


class TrainingSettings(Section):
    """A budget, an optimizer and its schedule; shared by pre-training and fine-tuning."""

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
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    augment: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 autocast where the hardware has it, by `auto`."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="A GPU, by `auto`.")
    threads: Threads = 2
    seed: int = Field(
        0, ge=0, lt=2**32, description="Of the weights, the order and the augmentation."
    )
    curve_every_steps: int = Field(50, ge=1, description="A point of the curve, in steps.")
    validate_every_steps: int | None = Field(
        None, ge=1, description="A validation accuracy on the curve; a multiple of the above."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the budget either as `steps` or as `epochs`")
        if self.validate_every_steps and self.validate_every_steps % self.curve_every_steps:
            raise ValueError(
                f"`validate_every_steps` ({self.validate_every_steps}) must be a multiple of "
                f"`curve_every_steps` ({self.curve_every_steps})"
            )
        return self


class PretrainSettings(TrainingSettings):
    """A recipe for a checkpoint."""

    start: str | None = Field(
        None, description="Weights to go on from (a warm restart); null: random ones."
    )


class MethodSettings(Section):
    """A method is only data: factorizations, rank rule, schedule, and its own fine-tuning."""

    factorize: FactorizeSettings
    ranks: RankSettings = RankSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    finetune: dict[str, Any] = Field(
        default_factory=dict, description="Entries that replace those of `finetune`."
    )


class SelectRanksSettings(Section):
    """Of the step, not of the rule."""

    threads: Threads = 1


class DecomposeSettings(Section):
    """Of each layer's job; the jobs run side by side under --cores."""

    threads: Threads = 1


class ExportSettings(Section):
    """Of the ONNX file."""

    threads: Threads = 2


class DeviceSettings(Section):
    """A device that models are measured on."""

    kind: Literal["local"] = Field("local", description="`local`: the machine that runs the step.")
    threads: Threads = 1
    batch_size: int = Field(1, ge=1, description="Images in one run.")
    repeats: int = Field(50, ge=2, description="At least so many paired runs.")
    seconds: float = Field(2.0, gt=0, description="At least so long for each model.")
    warmup_seconds: float = Field(0.5, ge=0, description="Before measuring, for each model.")
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime execution provider.")


class Params(Section):
    """The whole of params.yaml."""

    matrix: Matrix
    dataset: dict[Name, DatasetSettings]
    checkpoint: dict[Name, CheckpointSettings]
    methods: dict[Name, MethodSettings]
    select_ranks: SelectRanksSettings = SelectRanksSettings()
    decompose: DecomposeSettings = DecomposeSettings()
    finetune: TrainingSettings
    export_onnx: ExportSettings = ExportSettings()
    benchmark: dict[Name, DeviceSettings]
    pretrain: dict[Name, PretrainSettings] = Field(default_factory=dict)

    def finetune_of(self, method: str) -> TrainingSettings:
        """`finetune` with the entries that the method replaces; one budget replaces the other."""
        replaced = self.methods[method].finetune
        common = self.finetune.model_dump(exclude_unset=True)
        for budget, other in (("steps", "epochs"), ("epochs", "steps")):
            if budget in replaced:
                common.pop(other, None)
        return TrainingSettings.model_validate(common | replaced)

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        references = [
            ("matrix.models", self.matrix.models, "checkpoint", self.checkpoint),
            ("matrix.methods", self.matrix.methods, "methods", self.methods),
            ("matrix.devices", self.matrix.devices, "benchmark", self.benchmark),
        ] + [
            (f"checkpoint.{name}.dataset", (settings.dataset,), "dataset", self.dataset)
            for name, settings in self.checkpoint.items()
        ]
        for place, names, section, known in references:
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"`{place}` names '{name}', which is not under `{section}`"
                        f"{_nearest(name, known)}"
                    )
        results = [f"{model}_{method}" for model in self.checkpoint for method in self.methods]
        if twice := [name for name in results if results.count(name) > 1]:
            raise ValueError(
                f"two pairs of `checkpoint` and `methods` give the result '{twice[0]}'; rename one"
            )
        if "original" in self.methods:
            raise ValueError("`methods.original`: 'original' names the uncompressed network")
        return self


def parse_params(document: Mapping[str, Any], *, source: str = "params.yaml") -> Params:
    """Check a configuration. Raises UserError that names each wrong parameter and its bounds."""
    try:
        params = Params.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{source}: {_described(error, Params)}") from error
    for method in params.methods:
        try:
            params.finetune_of(method)
        except ValidationError as error:
            place = f"methods.{method}.finetune"
            raise UserError(f"{source}: {_described(error, TrainingSettings, place)}") from error
    return params


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml. Raises UserError when it is missing or wrong."""
    try:
        document = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. Run the command in the folder that holds it."
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(document).__name__}.")
    return parse_params(document, source=str(path))


def schema() -> str:
    """The JSON schema that stands in workflow/schemas/, for editors and for Snakemake."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"


def _described(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One clause for each mistake: the parameter, what was found, what is allowed."""
    clauses = []
    for mistake in error.errors(include_url=False):
        place = [str(part) for part in mistake["loc"] if part != "[key]"]
        name = ".".join(([prefix] if prefix else []) + place)
        match mistake["type"]:
            case "extra_forbidden":
                known = _known_at(model, place[:-1])
                clauses.append(
                    f"unknown parameter `{name}`{_nearest(place[-1], known)}, known here are "
                    f"{', '.join(sorted(known))}"
                )
            case "missing":
                clauses.append(f"`{name}` is missing")
            case "value_error":
                found = mistake["msg"].removeprefix("Value error, ")
                clauses.append(f"in `{name}`: {found}" if name else found)
            case _:
                expected = mistake["msg"].partition(" should ")[2]
                bounds = _bounds(model, place)
                clauses.append(f"`{name}` is {mistake['input']!r}, it should {expected}{bounds}")
    return "; ".join(clauses) + "."


def _bounds(model: type[BaseModel], place: list[str]) -> str:
    """The description and all bounds of the parameter at `place`, in brackets."""
    section = _section_at(model, place[:-1])
    document = section.model_json_schema()["properties"].get(place[-1], {})
    words = {
        "exclusiveMinimum": "above {}",
        "minimum": "at least {}",
        "exclusiveMaximum": "below {}",
        "maximum": "at most {}",
    }
    found = [text.format(document[key]) for key, text in words.items() if key in document]
    return f" (bounds: {', '.join(found)})" if found else ""


def _known_at(model: type[BaseModel], place: list[str]) -> list[str]:
    return list(_section_at(model, place).model_fields)


def _section_at(model: type[BaseModel], place: list[str]) -> type[BaseModel]:
    """The section at `place`; the names of a mapping's entries are stepped over."""
    for part in place:
        if (field := model.model_fields.get(part)) is None:
            continue
        found = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [t for t in found if isinstance(t, type) and issubclass(t, BaseModel)]
        model = sections[0] if sections else model
    return model


def _nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
