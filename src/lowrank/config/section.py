"""The base of every section of params.yaml, and types that several sections use."""

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

from lowrank.config.choices import CHOICES, misplaced
from lowrank.config.mistakes import NAME

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
