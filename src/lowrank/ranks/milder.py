"""Search for the nearest milder settings of a rank rule that keep enough accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank.config.ranks import RankSettings, Target
from lowrank.core.plans import Expected

# Number of bisection steps toward no compression. Each step costs one choice of ranks and its
# evaluation.
_PROBES = 5


@dataclass(frozen=True)
class Milder:
    """A rule that compresses less, and its text for params.yaml."""

    settings: RankSettings
    written: str


def milder(settings: RankSettings, ease: float) -> Milder:
    """Return the rule with its own setting moved toward no compression.

    Parameters
    ----------
    settings
        The rule.
    ease
        Share of the distance to no compression, from 0 (the rule itself) to 1.
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
    """Return the smallest change of a rule that keeps enough accuracy, by bisection.

    None if none of the tried settings does.
    """
    too_harsh, mild_enough, nearest = 0.0, 1.0, None
    for _ in range(_PROBES):
        middle = (too_harsh + mild_enough) / 2
        candidate = milder(settings, middle)
        if keeps_enough(candidate.settings):
            mild_enough, nearest = middle, candidate
        else:
            too_harsh = middle
    return nearest


def ruined(expected: Expected, largest: float, where: str, advice: str) -> str:
    """Return the error message for ranks that lose too much accuracy.

    Parameters
    ----------
    expected
        Measured accuracy at these ranks.
    largest
        Largest drop that is allowed.
    where
        Section of params.yaml with the setting.
    advice
        What to do instead: a sentence without its full stop.
    """
    return (
        f"{where}: at these ranks the accuracy is expected to fall from {expected.before:.1f} % to "
        f"{expected.after:.1f} % before fine-tuning, on {expected.images} validation images. "
        f"This is a drop of {expected.drop:.0%} of the accuracy above chance "
        f"({expected.chance:.1f} %), but `largest_drop` allows only {largest:.0%}. {advice}. To "
        f"continue anyway, set `{where}.largest_drop: 1`."
    )


def _raised(target: Target, power: float) -> Target:
    """Return the target with each share raised to a power below 1, which brings it nearer to 1."""

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
