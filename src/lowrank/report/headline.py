"""Select the metrics of a result that a user compares between commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Metrics of every network, further metrics of the float network, and metrics by device.
_ANY_NETWORK = ("accuracy.exported", "size_bytes.ratio")
_FLOAT_NETWORK = (
    *_ANY_NETWORK,
    *("accuracy.original", "parameters.ratio", "macs.ratio", "finetune.steps"),
)
_BY_DEVICE = ("compressed.p50", "speedup")
# Keys of the quantized network and of the quantized original in a result.
_CONTROL = "control.int8"
QUANTIZED = ("int8", _CONTROL)


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that `dvc metrics` shows, under the same keys as in the result.

    Clock rates, loads, intervals, warnings and the origin of the result are left out.
    """
    metrics: dict[str, Any] = {}
    for prefix in ("", *QUANTIZED):
        document = at(result, prefix) if prefix else result
        if document is None:
            continue
        for place in _ANY_NETWORK if prefix else _FLOAT_NETWORK:
            _set(metrics, _join(prefix, place), at(document, place))
        # The control's latency is left out: it is measured again in each result, so it would differ
        # after every change. `int8.latency_ms.<device>.speedup_over_control` compares with it.
        latencies = {} if prefix == _CONTROL else document.get("latency_ms", {})
        for device, latency in latencies.items():
            for place in _BY_DEVICE:
                value = at(latency, place)
                _set(metrics, _join(prefix, f"latency_ms.{device}.{place}"), value)
        for device, energy in document.get("energy_mj", {}).items():
            place = f"energy_mj.{device}.compressed"
            _set(metrics, _join(prefix, place), energy.get("compressed"))
    return metrics


def at(document: Mapping[str, Any], place: str) -> Any:
    """Return the value at a place, which is a list of keys separated by dots, or None."""
    value: Any = document
    for key in place.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _join(*places: str) -> str:
    return ".".join(filter(None, places))


def _set(document: dict[str, Any], place: str, value: Any) -> None:
    """Set the value at a place, unless it is None because it was not measured."""
    if value is None:
        return
    *sections, name = place.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[name] = value
