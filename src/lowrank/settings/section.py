"""Base class of the sections of params.yaml, and types that several sections use."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lowrank.settings.choices import CHOICES, misplaced
from lowrank.settings.mistakes import NAME

Threads = Annotated[
    int,
    Field(
        ge=1,
        le=1024,
        description="Number of CPU threads of the step, independent of --cores. Another number "
        "changes the rounding of results.",
    ),
]


BatchSize = Annotated[int, Field(ge=1)]


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


_Value = TypeVar("_Value")


OneOrSeveral = Annotated[
    Annotated[_Value, Tag("one")]
    | Annotated[tuple[_Value, ...], Field(min_length=1), Tag("several")],
    Discriminator(_one_or_several),
]


Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(description="`auto`: bfloat16 autocast if the hardware supports it."),
]


Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], Field(description="`auto`: a GPU if there is one.")
]


MeasuringDevice = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Field(
        description="Processor of the measurements. `auto`: a GPU if there is one; the step waits "
        "until no other job uses it. Values differ slightly between processors, and ranks with "
        "them."
    ),
]


Name = Annotated[str, Field(pattern=NAME)]


def _checked_path(path: str) -> str:
    if (
        not path
        or path.startswith("-")
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
    ):
        raise ValueError(
            f"{path!r} is not a usable path: it is empty, starts with '-' or contains control "
            "characters"
        )
    return path


# Paths are written to commands and to files that many programs read.
OwnPath = Annotated[str, AfterValidator(_checked_path)]

# A function of the user, `package.module:function`.
OwnFunction = Annotated[
    str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
]


class Section(BaseModel):
    """A part of params.yaml; keys that it does not define are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Settings whose values decide which other settings are used; see `CHOICES`.
    chooses: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def all_sections(cls) -> "list[type[Section]]":
        """Return the section; for a union of sections, all of them, the default first."""
        return [cls]

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, given the other settings, and where they belong."""
        reasons, names = {}, list(type(self).model_fields)
        for setting in self.chooses:
            value = getattr(self, setting)
            without_effect = misplaced(setting, value, names)
            used = [f"`{name}`" for name in names if name not in (setting, *without_effect)]
            for name in without_effect:
                users = [f"`{setting}: {user}`" for user in CHOICES[setting][name]]
                belongs = (
                    f"belongs to {' or '.join(users)}, not to"
                    if len(users) < 3
                    else ("cannot be used with")
                )
                reasons[name] = (
                    f"{belongs} `{setting}: {value}`, which uses {', '.join(used) or 'no others'}"
                )
        return reasons

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        """Reject settings that would have no effect."""
        for name, reason in self.unused().items():
            if name in self.model_fields_set:
                raise PydanticCustomError(
                    "misplaced", "`{name}` {reason}", {"name": name, "reason": reason}
                )
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings without effect, so that a written section can be read again."""
        unused = self.unused()
        return {name: value for name, value in write(self).items() if name not in unused}
