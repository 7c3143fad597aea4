"""A kind of device: what `kind` means in params.yaml, its own settings, and how it is created."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lowrank.devices.device import Device, DeviceError
from lowrank.devices.measure_settings import (
    MeasureSettings,
    check_settings,
    main_settings,
    names_of,
)

# Settings of this name do not reach a device: they choose its kind.
KIND = "kind"


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The own settings of a kind of device that has none."""


NO_SETTINGS = NoSettings()


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """A kind of device, for `kind` in a section of params.yaml.

    Attributes
    ----------
    name : str
        Name of the kind.
    description : str
        What such a device is, for users: it continues "`ssh`: ".
    create_device : callable
        Function that creates a `Device` from the user's name for it, the settings of its
        measurements (fields of `MeasureSettings` by name, which apply unless a measurement
        overrides them), and an instance of `settings`. Usually the class of the device. It raises
        DeviceError if a setting is wrong.
    settings : type
        Dataclass of the settings that only this kind has, declared with `setting`. They identify
        the machine and say how it is reached. A change of them describes the machine again. If the
        device is a node of a cluster, a method `job_resources` returns the resources, as
        Snakemake's executor for the cluster names them, of the jobs that use the device.
    measures_here : bool
        Whether the device is the machine that runs the pipeline. It is then described again if its
        processor or ONNX Runtime changes.
    """

    name: str
    description: str
    create_device: Callable[[str, dict[str, Any], Any], Device]
    settings: type = NoSettings
    measures_here: bool = False

    @property
    def own_names(self) -> list[str]:
        """Names of the settings that only this kind has."""
        return names_of(self.settings)

    @property
    def sends_files(self) -> bool:
        """Whether its devices keep files elsewhere, which their method `clean` removes."""
        return hasattr(self.create_device, "clean")

    def create(self, name: str, settings: dict[str, Any]) -> Device:
        """Create the device `name` from a section of params.yaml.

        Raises DeviceError if a setting is unknown, missing or wrong.
        """
        known = [KIND, *self.own_names, *names_of(MeasureSettings)]
        for setting in settings:
            if setting not in known:
                raise DeviceError(
                    f"device '{name}' of kind '{self.name}': unknown setting '{setting}'. Known: "
                    f"{', '.join(sorted(known))}. Correct it in params.yaml."
                )
        own = {key: settings[key] for key in self.own_names if key in settings}
        for field in dataclasses.fields(self.settings):
            is_required = field.default is field.default_factory is dataclasses.MISSING
            if field.name not in own and is_required:
                raise DeviceError(
                    f"device '{name}' of kind '{self.name}': `{field.name}` is missing. Set it in "
                    f"params.yaml: {field.metadata['description']}"
                )
        own_settings = self.settings(**own)
        check_settings(own_settings, f"device '{name}' of kind '{self.name}':")
        return self.create_device(name, main_settings(settings), own_settings)

    def job_resources(self, settings: dict[str, Any]) -> dict[str, str]:
        """Return the resources of a cluster's job that uses a device of this kind.

        `settings` is the device's section of params.yaml.
        """
        own = self.settings(**{key: settings[key] for key in self.own_names if key in settings})
        resources: dict[str, str] = own.job_resources() if hasattr(own, "job_resources") else {}
        return resources

    def identity(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that identify and reach the machine, without how it measures."""
        names = [KIND, *self.own_names]
        return {name: settings[name] for name in names if name in settings}

    def mistake(self) -> str | None:
        """Return what is wrong with this kind, as the end of a sentence; None if nothing is."""
        if not dataclasses.is_dataclass(self.settings):
            return f"has the settings {self.settings!r}; expected a dataclass"
        if not callable(self.create_device):
            return f"has the `create_device` {self.create_device!r}; expected a class or a function"
        if taken := {KIND, *names_of(MeasureSettings)} & {*self.own_names}:
            return f"has a setting `{min(taken)}`, which every device has; expected another name"
        for field in dataclasses.fields(self.settings):
            if not field.metadata.get("description"):
                return (
                    f"has a setting `{field.name}` without a description; expected a field "
                    "declared with `lowrank.devices.setting`"
                )
        return None
