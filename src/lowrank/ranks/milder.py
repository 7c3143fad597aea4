"""Milder settings of a rank rule: which one is the nearest that does not ruin the network."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank.config.ranks import RankSettings, Target
from lowrank.core.plans import Expected

# Halvings of the way to no compression at all; each costs a choice of ranks and its evaluation.
_PROBES = 5


@dataclass(frozen=True)
class Milder:
    """A rule that compresses less, and how a user writes that in params.yaml."""

    settings: RankSettings
    written: str


def milder(settings: RankSettings, ease: float) -> Milder:
    """The rule with its own setting moved towards no compression.

    Parameters
    ----------
    settings
        The rule.
    ease
        Share of the way, from 0, the rule as it is, to 1.
    """
    match settings.select:
        case "ratio" | "sensitivity":
            name, value = "ratio", max(round(settings.ratio ** (1 - ease), 2), 1.01)
        case "energy":
            name, value = "energy", round(settings.energy + ease * (1 - settings.energy), 3)
        case "budget":
            target = _raised(settings.target, 1 - ease)
            written = ", ".join(_entries(target))
            update = {"target": target}
            return Milder(settings.model_copy(update=update), f"target: {{{written}}}")
        case _:
            name, value = "weaken", round(settings.weaken + ease * (1 - settings.weaken), 2)
    return Milder(settings.model_copy(update={name: value}), f"{name}: {value:g}")


def nearest_that_keeps(
    settings: RankSettings, keeps_enough: Callable[[RankSettings], bool]
) -> Milder | None:
    """The least change of a rule with which the network keeps enough, by bisection.

    None where none of the settings that were tried does.
    """
    too_harsh, mild, found = 0.0, 1.0, None
    for _ in range(_PROBES):
        middle = (too_harsh + mild) / 2
        candidate = milder(settings, middle)
        if keeps_enough(candidate.settings):
            mild, found = middle, candidate
        else:
            too_harsh = middle
    return found


def ruined(expected: Expected, largest: float, where: str, advice: str) -> str:
    """Say that ranks ruin a network, for a user.

    Parameters
    ----------
    expected
        What was tried.
    largest
        The largest drop that is allowed.
    where
        The section of params.yaml that decides.
    advice
        What to do instead: a sentence without its full stop.
    """
    return (
        f"{where}: at these ranks the network is expected to fall from {expected.before:.1f} % to "
        f"{expected.after:.1f} % before any fine-tuning, on {expected.images} validation images. "
        f"That is {expected.drop:.0%} of what it has above chance ({expected.chance:.1f} %), and "
        f"`largest_drop` allows {largest:.0%}. {advice}. To go on all the same, set "
        f"`{where}.largest_drop: 1`."
    )


def _raised(target: Target, power: float) -> Target:
    """The target with each share raised to a power below 1, which lies nearer to 1."""

    def share(value: float | None) -> float | None:
        return None if value is None else round(value**power, 3)

    return target.model_copy(
        update={name: share(getattr(target, name)) for name in ("macs", "parameters", "size_bytes")}
        | {"latency_ms": {device: share(value) for device, value in target.latency_ms.items()}}
    )


def _entries(target: Target) -> list[str]:
    counts = [
        f"{name}: {value:g}"
        for name in ("macs", "parameters", "size_bytes")
        if (value := getattr(target, name)) is not None
    ]
    devices = ", ".join(f"{device}: {share:g}" for device, share in target.latency_ms.items())
    return counts + ([f"latency_ms: {{{devices}}}"] if devices else [])
