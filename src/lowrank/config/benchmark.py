"""`benchmark`: devices, and how latency and energy are measured on them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, create_model

from lowrank.config.device_kinds import DEFAULT_KIND, DEVICE_KINDS, fields_of
from lowrank.devices import DeviceKind
from lowrank.errors import UserError
from lowrank.settings.mistakes import refused
from lowrank.settings.section import Section


class DeviceSettings(Section):
    """A device on which networks are measured: its kind's settings, and how it measures."""

    kind: str = Field(description="Kind of device.")

    def to_json(self) -> str:
        """Return all settings as JSON, for the steps."""
        return self.model_dump_json()

    def connection_json(self) -> str:
        """Return the settings that identify and reach the machine, without how it measures."""
        return self.model_dump_json(include={"kind", *DEVICE_KINDS.get(self.kind).own_names})


def section_of(kind: DeviceKind) -> type[DeviceSettings]:
    """Return the section of params.yaml for a kind of device."""
    default: dict[str, Any] = {"default": kind.name} if kind.name == DEFAULT_KIND else {}
    return create_model(
        "".join(part.capitalize() for part in kind.name.split("_")) + "DeviceSettings",
        __base__=DeviceSettings,
        __doc__=f"A device of `kind: {kind.name}`: {kind.description}",
        kind=(_literal(kind.name), Field(description=kind.description, **default)),
        **fields_of(kind),
    )


def _literal(text: str) -> Any:
    """Return the type of exactly this text. A checker of types cannot know it."""
    return Literal[text]


def _with_kind(section: Any) -> Any:
    """Add the default kind, and say what is wrong with a kind of an installed package."""
    if not isinstance(section, Mapping):
        return section
    kind = section.get("kind", DEFAULT_KIND)
    if kind in DEVICE_KINDS.names():
        try:
            DEVICE_KINDS.get(kind)
        except UserError as error:
            raise refused(str(error).rstrip("."), "kind") from error
    return {"kind": kind, **section}


if TYPE_CHECKING:
    AnyDeviceSettings = DeviceSettings
else:
    # The value of `kind` selects the section that checks the other settings.
    AnyDeviceSettings = Annotated[
        Union[tuple(section_of(kind) for kind in DEVICE_KINDS.usable().values())],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(_with_kind),
    ]
