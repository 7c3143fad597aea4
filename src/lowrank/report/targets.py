"""Compare the network that was found for a target with the control, int8 of the original network.

The control needs one line of ONNX Runtime and neither compression nor training. If it meets a
target as well as the compressed network does, it is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.core.metric import Metric
from lowrank.report.headline import at

CONTROL, COMPRESSED = "control", "compressed"
# Costs that int8 does not reduce.
_UNCHANGED = ("macs", "parameters")


def best_of_search(
    search: Mapping[str, Any], result: Mapping[str, Any], metric: Metric
) -> dict[str, str]:
    """Return the `best` network for a target of `accuracy_drop`, and the `reason`.

    Parameters
    ----------
    search
        The report of the step `settle`.
    result
        The result of the trial that `settle` chose. It contains `control` if the method delivers an
        int8 network.
    metric
        Main metric of the task.
    """
    allowed = f"{search['accuracy_drop']:g} {metric.difference_unit}".rstrip()
    control = search.get("control")
    if control is None:
        return {"best": COMPRESSED, "reason": "the method delivers no int8 network"}
    losses = (
        f"on the validation images it loses {metric.number(control['drop'])} +- "
        f"{metric.difference(control['standard_error'])}, the compressed network "
        f"{metric.number(search['drop'])} +- {metric.number(search['standard_error'])}"
    )
    if not control["within"]:
        return {
            "best": COMPRESSED,
            "reason": f"int8 of the original loses more than {allowed}: {losses}",
        }
    if not search["within"]:
        return {
            "best": CONTROL,
            "reason": f"int8 of the original loses at most {allowed}, but all trials lose more: "
            f"{losses}",
        }
    cheaper, comparison = _cheaper_than_control(search["cost"], result)
    return {"best": COMPRESSED if cheaper else CONTROL, "reason": f"{comparison}; {losses}"}


def _cheaper_than_control(cost: str, result: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether the compressed network costs less than int8 of the original, and a text."""
    if cost in _UNCHANGED:
        return True, f"int8 does not reduce the {cost} of the original"
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
    # If the interval contains 1, the compressed network is not clearly faster.
    faster = low > 1
    return faster, (
        f"the compressed network is {'' if faster else 'not clearly '}faster than int8 of the "
        f"original on {device}: {ratio:.2f} times ({low:.2f} to {high:.2f})"
    )


def best_for_latency(
    target: Mapping[str, float], result: Mapping[str, Any], metric: Metric
) -> dict[str, Any]:
    """Return which networks meet a target of `latency_ms`, and the best of them.

    Parameters
    ----------
    target
        The allowed share of the original's latency, by device.
    result
        The result of the compressed network, which is in int8, with `control`.
    metric
        Main metric of the task.

    Returns
    -------
    dict
        `latency_ms.<device>` with the `allowed` share and the shares of the `compressed` network
        and the `control`; `met` and `met_by_control`; `best`, the network that meets the target
        with the better metric, and the `reason`.
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
        all(_is_allowed(share, network) for share in shares.values())
        for network in (COMPRESSED, CONTROL)
    )
    compressed, control = (
        at(result, f"{place}.accuracy.validation.exported") for place in ("int8", "control.int8")
    )
    is_control = by_control and not (met and metric.is_better(compressed, control))
    best = CONTROL if is_control else COMPRESSED
    control_shares = ", ".join(
        f"{share[CONTROL]:.3f} on {device} ({share['allowed']:g} allowed)"
        for device, share in shares.items()
        if share[CONTROL] is not None
    )
    reason = (
        f"int8 of the original {'meets' if by_control else 'does not meet'} the target: its share "
        f"of the original's latency is {control_shares or 'unknown'}. Its {metric.noun} on the "
        f"validation images is {metric.text(control)}, that of the compressed network "
        f"{metric.text(compressed)}"
    )
    known_shares = {
        device: {key: value for key, value in share.items() if value is not None}
        for device, share in shares.items()
    }
    return {
        "latency_ms": known_shares,
        "met": met,
        "met_by_control": by_control,
        "best": best,
        "reason": reason,
    }


def _is_allowed(share: Mapping[str, float | None], network: str) -> bool:
    measured, allowed = share[network], share["allowed"]
    return measured is not None and allowed is not None and measured <= allowed


def _share(result: Mapping[str, Any], place: str) -> float | None:
    """Return a network's share of the original's latency, or None if it was not measured."""
    speedup = at(result, f"{place}.speedup")
    return None if speedup is None else round(1 / speedup, 4)
