"""Measure ONNX models on this machine or on another one, with ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowrank.devices.device import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    Device,
    DeviceError,
    MeasureSettings,
    combinations,
    main_settings,
)
from lowrank.devices.local import LocalDevice
from lowrank.devices.ssh import SshDevice

__all__ = [
    "FLOAT_PRODUCTS",
    "INTEGER_PRODUCTS",
    "Device",
    "DeviceError",
    "MeasureSettings",
    "SshDevice",
    "combinations",
    "create_device",
    "main_settings",
]

_KINDS: dict[str, Callable[[str, dict[str, Any]], Device]] = {
    "local": LocalDevice,
    "ssh": SshDevice,
}


def create_device(name: str, settings: dict[str, Any]) -> Device:
    """Create the device `name` with the settings that apply to all its measurements.

    `settings["kind"]` selects the kind of device. If it is missing, `name` is the kind. Raises
    DeviceError for an unknown kind.
    """
    kind = settings.get("kind", name)
    if kind not in _KINDS:
        raise DeviceError(
            f"device '{name}' has the unknown kind '{kind}'. Known: {', '.join(sorted(_KINDS))}. "
            "Correct it in params.yaml."
        )
    return _KINDS[kind](name, settings)
