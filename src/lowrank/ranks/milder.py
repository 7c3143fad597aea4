"""Search for the nearest milder settings of a rank rule that keep enough accuracy."""

from collections.abc import Callable

from lowrank.core.plans import Expected
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import Milder, rule_of

# Number of bisection steps toward no compression. Each step costs one choice of ranks and its
# evaluation.
_PROBES = 5


def nearest_that_keeps(
    settings: RankSettings, keeps_enough: Callable[[RankSettings], bool]
) -> Milder | None:
    """Return the smallest change of a rule that keeps enough accuracy, by bisection.

    None if none of the tried settings does, or if the rule has no milder settings.
    """
    rule = rule_of(settings)
    too_harsh, mild_enough, nearest = 0.0, 1.0, None
    for _ in range(_PROBES):
        middle = (too_harsh + mild_enough) / 2
        if (candidate := rule.milder(settings, middle)) is None:
            return None
        if keeps_enough(candidate.settings):
            mild_enough, nearest = middle, candidate
        else:
            too_harsh = middle
    return nearest


def ruined(expected: Expected, largest: float, where: str, advice: str) -> str:
    """Return the error message for ranks that lose too much of the metric.

    Parameters
    ----------
    expected
        Measured metric at these ranks.
    largest
        Largest drop that is allowed.
    where
        Section of params.yaml with the setting.
    advice
        What to do instead: a sentence without its full stop.
    """
    metric = expected.metric
    before, after = (metric.text(value, 1) for value in (expected.before, expected.after))
    verb, side = ("fall", "above") if metric.higher_is_better else ("rise", "below")
    return (
        f"{where}: at these ranks the {metric.noun} is expected to {verb} from {before} to "
        f"{after} before fine-tuning, on {expected.images} validation images. "
        f"This is a drop of {expected.drop:.0%} of the {metric.noun} {side} chance "
        f"({expected.chance_text}), but `largest_drop` allows only {largest:.0%}. {advice}. To "
        f"continue anyway, set `{where}.largest_drop: 1`."
    )
