"""Sections whose settings depend on the value of one of them: `select: energy`, `kind: ssh`."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from lowrank.errors import UserError
from lowrank.settings.section import Section


class Alternatives(Section):
    """A union of sections, told apart by one setting that names the section.

    Validation returns an instance of the section that the setting names, never of this class. An
    entry that only another section has is an error that names the other section. Extensions from
    installed packages are imported when they are named, and to list all sections.
    """

    # Setting that names the section, and its value if it is missing.
    discriminator: ClassVar[str]
    default: ClassVar[str]

    @classmethod
    @abstractmethod
    def names(cls) -> list[str]:
        """Return the values of the discriminator."""

    @classmethod
    @abstractmethod
    def section_named(cls, name: str) -> type[Section]:
        """Return the section with that name. Raises UserError if it cannot be used."""

    @classmethod
    def usable(cls) -> dict[str, type[Section]]:
        """Return the sections by name, without those of broken packages."""
        sections = {}
        for name in cls.names():
            try:
                sections[name] = cls.section_named(name)
            except UserError:
                continue
        return sections

    @classmethod
    def all_sections(cls) -> list[type[Section]]:
        sections = cls.usable()
        return [sections.pop(cls.default), *sections.values()]

    @classmethod
    def unused_with(cls, name: Any) -> set[str]:
        """Return the settings that other sections have and the named one has not."""
        if name not in cls.names():
            return set()
        fields = {field for section in cls.usable().values() for field in section.model_fields}
        return fields - set(cls.section_named(name).model_fields)

    @model_validator(mode="wrap")
    @classmethod
    def _of_section(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if isinstance(value, Section):
            value = value.model_dump(exclude_unset=True)
        if not isinstance(value, Mapping):
            return handler(value)  # It raises the usual error for a value that is not a mapping.
        name = value.get(cls.discriminator, cls.default)
        if name not in cls.names():
            expected = " or ".join(", ".join(map(repr, cls.names())).rsplit(", ", 1))
            raise cls._mistake("literal_error", name, cls.discriminator, expected=expected)
        try:
            section = cls.section_named(name)
        except UserError as error:
            context = {"message": str(error).rstrip("."), "place": (cls.discriminator,)}
            raise cls._mistake(PydanticCustomError("refused", "{message}", context), name) from None
        misplaced = next((entry for entry in value if entry in cls.unused_with(name)), None)
        if misplaced is not None:
            raise PydanticCustomError(
                "misplaced",
                "`{name}` {reason}",
                {"name": misplaced, "reason": cls._reason(misplaced, name, section)},
            )
        return section.model_validate(value)

    @classmethod
    def _reason(cls, entry: str, name: str, section: type[Section]) -> str:
        """Return to which sections an entry belongs, as a clause of a message."""
        setting = cls.discriminator
        users = [
            f"`{setting}: {user}`"
            for user, other in cls.usable().items()
            if entry in other.model_fields
        ]
        belongs = (
            f"belongs to {' or '.join(users)}, not to" if len(users) < 3 else "cannot be used with"
        )
        others = [other.model_fields for other in cls.usable().values()]
        own = ", ".join(
            f"`{field}`"
            for field in section.model_fields
            if field != setting and not all(field in other for other in others)
        )
        ending = f"which uses {own}" if own else "which has no settings of its own"
        return f"{belongs} `{setting}: {name}`, {ending}"

    @classmethod
    def _mistake(
        cls, kind: str | PydanticCustomError, value: Any, *place: str, **context: Any
    ) -> ValidationError:
        details = InitErrorDetails(type=kind, loc=place, input=value, ctx=context)
        return ValidationError.from_exception_data(cls.__name__, [details])

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return one alternative for each section, told apart by the discriminator."""
        schemas = []
        for name, section in cls.usable().items():
            schema = handler.resolve_ref_schema(handler(section.__pydantic_core_schema__))
            if name != cls.default:
                # So that exactly one alternative fits entries without the discriminator.
                schema["required"] = sorted({*schema.get("required", ()), cls.discriminator})
            schemas.append(schema)
        return {"oneOf": schemas, "discriminator": {"propertyName": cls.discriminator}}
