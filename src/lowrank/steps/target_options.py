"""The option `--target` of `lowrank compress`."""

from collections.abc import Sequence
from typing import Any

from lowrank.errors import UserError


def ranks_of(targets: Sequence[str], largest_drop: float) -> dict[str, Any]:
    """Return the settings of the rank rule. Raises UserError for a target of another form."""
    if not targets:
        return {"select": "vbmf", "largest_drop": largest_drop}
    limits = dict(map(_limit, targets))
    if "accuracy_drop" in limits and len(limits) > 1:
        raise UserError(
            "--target: accuracy_drop cannot be combined with a target of costs. Give one of them."
        )
    settings: dict[str, Any] = {name: limits[name] for name in limits if name != "latency"}
    if "latency" in limits:
        settings["latency_ms"] = {"local": limits["latency"]}
    return {
        "select": "budget",
        "target": settings,
        "multiple_of": "auto",
        "largest_drop": largest_drop,
    }


def _limit(target: str) -> tuple[str, float]:
    """Return the name and the value of a target. Raises UserError if it has another form."""
    name, _, text = target.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    largest = {"macs": 1, "parameters": 1, "size_bytes": 1, "latency": 1, "accuracy_drop": 100}
    if not 0 < value < largest.get(name, 0):
        raise UserError(
            f"--target {target}: expected macs, parameters, size_bytes or latency and a share of "
            "the original's cost between 0 and 1, such as macs=0.5, or accuracy_drop and points "
            "below 100, such as accuracy_drop=1."
        )
    return name, value
