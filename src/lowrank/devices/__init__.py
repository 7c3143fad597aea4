"""Measure ONNX models on this machine or on another one, with a runtime and NumPy alone.

A module whose `ENTRIES` hold a `DeviceKind` adds a kind of device. `lowrank.config.device_kinds`
finds these modules, and the kinds of installed packages.
"""

from lowrank.devices.device import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    Device,
    DeviceError,
    NodeTime,
)
from lowrank.devices.kind import DeviceKind, NoSettings
from lowrank.devices.measure_settings import MeasureSettings, combinations, main_settings, setting

__all__ = [
    "FLOAT_PRODUCTS",
    "INTEGER_PRODUCTS",
    "MODULES",
    "Device",
    "DeviceError",
    "DeviceKind",
    "MeasureSettings",
    "NoSettings",
    "NodeTime",
    "combinations",
    "main_settings",
    "setting",
]

# Prefix of the modules to search for kinds. The digests of steps follow this name, so the code of
# every kind counts for each step that uses a device.
MODULES = "lowrank.devices."
