"""The figures of a result that a user compares from one commit to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of the whole result, and of the networks in int8 that it also holds.
_OF_ANY = ("accuracy.exported", "size_bytes.ratio")
_OF_FLOAT = (*_OF_ANY, "accuracy.original", "parameters.ratio", "macs.ratio", "finetune.steps")
_BY_DEVICE = ("compressed.p50", "speedup")
# Where a result holds the quantized network, and the quantized original.
QUANTIZED = ("int8", "control.int8")


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that `dvc metrics` shows, under the keys that they have in the result.

    Clocks, loads, intervals, warnings and what says where the figures come from stay in the result.
    """
    found: dict[str, Any] = {}
    for within in ("", *QUANTIZED):
        document = at(result, within) if within else result
        if document is None:
            continue
        for place in _OF_ANY if within else _OF_FLOAT:
            _put(found, _joined(within, place), at(document, place))
        for device, latency in document.get("latency_ms", {}).items():
            for place in _BY_DEVICE:
                value = at(latency, place)
                _put(found, _joined(within, f"latency_ms.{device}.{place}"), value)
        for device, energy in document.get("energy_mj", {}).items():
            place = f"energy_mj.{device}.compressed"
            _put(found, _joined(within, place), energy.get("compressed"))
    return found


def at(document: Mapping[str, Any], place: str) -> Any:
    """Return what stands at a place, given by its keys with dots between; None if nothing does."""
    found: Any = document
    for key in place.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _joined(*places: str) -> str:
    return ".".join(filter(None, places))


def _put(document: dict[str, Any], place: str, value: Any) -> None:
    """Set a scalar at a place; nothing where it was not measured."""
    if value is None:
        return
    *sections, name = place.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[name] = value
