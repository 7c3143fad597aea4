"""Whether what was found for a target beats the control: int8 of the original network.

The control costs one line of ONNX Runtime, and no compression or training. Where it meets a target
as well as the compressed network does, it is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.report.headline import at

CONTROL, COMPRESSED = "control", "compressed"
# What int8 leaves as it is, so that the control has all of it.
_UNCHANGED = ("macs", "parameters")


def best_of_search(search: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """Return which network answers a target of `accuracy_drop`, as `best`, and the `reason`.

    Parameters
    ----------
    search
        The report of the step `settle`.
    result
        The result of the trial that it took, with `control` where the method delivers int8.
    """
    allowed = f"{search['accuracy_drop']:g} points"
    control = search.get("control")
    if control is None:
        return {"best": COMPRESSED, "reason": "the method delivers no int8 network"}
    losses = (
        f"on the validation images it loses {control['drop']:.2f} +- "
        f"{control['standard_error']:.2f} points, the compressed network {search['drop']:.2f} +- "
        f"{search['standard_error']:.2f}"
    )
    if not control["within"]:
        return {
            "best": COMPRESSED,
            "reason": f"int8 of the original loses more than {allowed}: {losses}",
        }
    if not search["within"]:
        return {
            "best": CONTROL,
            "reason": f"int8 of the original loses at most {allowed} and no trial does: {losses}",
        }
    cheaper, comparison = _cheaper_than_control(search["cost"], result)
    return {"best": COMPRESSED if cheaper else CONTROL, "reason": f"{comparison}; {losses}"}


def _cheaper_than_control(cost: str, result: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the compressed network costs less than int8 of the original, and by how much."""
    if cost in _UNCHANGED:
        return True, f"int8 of the original has all of its {cost}"
    if cost == "size_bytes":
        sizes = [at(result, f"{place}.size_bytes.compressed") for place in ("int8", "control.int8")]
        return sizes[0] < sizes[1], (
            f"the compressed network has {sizes[0]:,} bytes, int8 of the original {sizes[1]:,}"
        )
    device = cost.partition(".")[2]
    latency = at(result, f"int8.latency_ms.{device}") or {}
    if "speedup_over_control" not in latency:
        return True, f"int8 of the original was not measured on {device}"
    ratio, low, high = (latency[f"speedup_over_control{end}"] for end in ("", "_low", "_high"))
    # Where the interval holds 1, the compressed network is not known to be faster.
    faster = low > 1
    return faster, (
        f"the compressed network is {'' if faster else 'not clearly '}faster than int8 of the "
        f"original on {device}: {ratio:.2f} times ({low:.2f} to {high:.2f})"
    )


def best_for_latency(target: Mapping[str, float], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a target of `latency_ms` was met, and by which network with the smaller loss.

    Parameters
    ----------
    target
        The share of the original's milliseconds that is allowed, by device.
    result
        The result of the compressed network, which is in int8, with `control`.

    Returns
    -------
    dict
        `latency_ms.<device>` with `allowed` and the shares that the `compressed` network and the
        `control` take; `met` and `met_by_control`; `best` and its `reason`.
    """
    shares: dict[str, dict[str, float | None]] = {
        device: {
            "allowed": allowed,
            COMPRESSED: _share(result, f"int8.latency_ms.{device}"),
            CONTROL: _share(result, f"control.int8.latency_ms.{device}"),
        }
        for device, allowed in target.items()
    }
    met, by_control = (
        all(each[which] is not None and each[which] <= each["allowed"] for each in shares.values())
        for which in (COMPRESSED, CONTROL)
    )
    compressed, control = (
        at(result, f"{place}.accuracy.validation.exported") for place in ("int8", "control.int8")
    )
    best = CONTROL if by_control and (not met or control >= compressed) else COMPRESSED
    taken = ", ".join(
        f"{each[CONTROL]:.3f} on {device} ({each['allowed']:g} allowed)"
        for device, each in shares.items()
        if each[CONTROL] is not None
    )
    reason = (
        f"int8 of the original {'meets' if by_control else 'does not meet'} the target: of the "
        f"original's milliseconds it takes {taken or 'an unknown share'}. It has {control:.2f} % "
        f"of the validation images, the compressed network {compressed:.2f} %"
    )
    found = {
        device: {key: value for key, value in each.items() if value is not None}
        for device, each in shares.items()
    }
    return {
        "latency_ms": found,
        "met": met,
        "met_by_control": by_control,
        "best": best,
        "reason": reason,
    }


def _share(result: Mapping[str, Any], place: str) -> float | None:
    """Return what a network takes of the original's milliseconds; None if it was not measured."""
    speedup = at(result, f"{place}.speedup")
    return None if speedup is None else round(1 / speedup, 4)
