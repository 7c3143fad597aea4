"""The kinds of device, built in and from installed packages, and the checks of their settings.

A kind declares its settings as a plain dataclass (`lowrank.devices.setting`), because the room
`devices` works without pydantic. This module derives pydantic's fields from these dataclasses.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model

from lowrank.core.registries import Registry, entries_in
from lowrank.devices import MODULES, Device, DeviceKind, MeasureSettings
from lowrank.settings.section import OneOrSeveral, OwnPath

DEFAULT_KIND = "local"

# The constraints that pydantic names as `lowrank.devices.setting` does.
_CONSTRAINTS = ("ge", "gt", "le", "lt", "pattern")


def create_device(name: str, settings: Mapping[str, Any]) -> Device:
    """Create the device `name` from a section of params.yaml.

    Raises UserError for an unknown or broken kind of device, and DeviceError for a wrong setting.
    """
    return DEVICE_KINDS.get(settings.get("kind", DEFAULT_KIND)).create(name, dict(settings))


def fields_of(kind: DeviceKind) -> dict[str, Any]:
    """Return the fields of a kind's section in params.yaml, for `pydantic.create_model`.

    Raises an exception of pydantic or NameError if a setting has a type that cannot be checked.
    """
    fields: dict[str, Any] = {}
    for settings in (kind.settings, MeasureSettings):
        types = get_type_hints(settings)
        fields |= {
            field.name: _field(types[field.name], field) for field in dataclasses.fields(settings)
        }
    return fields


def _field(kind: Any, field: dataclasses.Field[Any]) -> tuple[Any, Any]:
    """Return the type of a setting and its description, default and constraints, for pydantic."""
    declared = field.metadata
    if choices := declared.get("choices"):
        kind = Literal[tuple(choices)]
    elif declared.get("path"):
        kind = OwnPath
    if constraints := {name: declared[name] for name in _CONSTRAINTS if name in declared}:
        kind = Annotated[kind, Field(**constraints)]
    if declared.get("several"):
        kind = OneOrSeveral[kind]  # type: ignore[misc]  # A type that is only known here.
    options: dict[str, Any] = {"description": declared["description"]}
    if field.default is not dataclasses.MISSING:
        options["default"] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        options["default_factory"] = field.default_factory
    return kind, Field(**options)


def _mistake_in(kind: DeviceKind) -> str | None:
    """Return what is wrong with a kind of device, for the registry; None if nothing is."""
    if mistake := kind.mistake():
        return mistake
    try:
        create_model("Checked", **fields_of(kind))
    except Exception as error:  # A type hint may be anything.
        return (
            f"has settings that cannot be checked ({type(error).__name__}: {error}); expected "
            "types such as int, float, bool and str"
        )
    return None


DEVICE_KINDS = Registry(
    "kind of device",
    DeviceKind,
    group="lowrank.devices",
    built_in=partial(entries_in, MODULES),
    mistake_in=_mistake_in,
)
