"""`benchmark`: devices, and how latency and energy are measured on them."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from lowrank.config.device_kinds import DEFAULT_KIND, DEVICE_KINDS, fields_of
from lowrank.devices import DeviceKind, MeasureSettings, main_settings
from lowrank.settings.alternatives import Alternatives
from lowrank.settings.section import Section


class DeviceSettings(Section):
    """A device on which networks are measured: its kind's settings, and how it measures."""

    kind: str = Field(description="Kind of device.")

    def to_json(self) -> str:
        """Return all settings as JSON, for the steps."""
        return self.model_dump_json()

    def connection_json(self) -> str:
        """Return the settings that identify and reach the machine, and its first runtime.

        Other settings of measurements are left out, and a runtime without options that is the
        default.
        """
        own = self.model_dump(mode="json", include={"kind", *DEVICE_KINDS.get(self.kind).own_names})
        main = main_settings(self.model_dump(mode="json"))
        if main["runtime"] != MeasureSettings.runtime or main["session"]:
            own |= {name: main[name] for name in ("runtime", "session")}
        return json.dumps(own, separators=(",", ":"), ensure_ascii=False)

    @property
    def main_runtime(self) -> str:
        """The runtime of the main measurement."""
        runtime: str = main_settings(self.model_dump(mode="json"))["runtime"]
        return runtime


@cache
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


if TYPE_CHECKING:
    AnyDeviceSettings = DeviceSettings
else:

    class AnyDeviceSettings(Alternatives):
        """A device of one kind, which `kind` names."""

        discriminator = "kind"
        default = DEFAULT_KIND

        @classmethod
        def names(cls) -> list[str]:
            return DEVICE_KINDS.names()

        @classmethod
        def section_named(cls, name: str) -> type[Section]:
            return section_of(DEVICE_KINDS.get(name))
