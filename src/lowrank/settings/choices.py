"""Settings that are used only with some values of another setting.

For example, `momentum` is used only with `optimizer: sgd`. The settings of a rank rule have a
section of their own instead; see `lowrank.settings.alternatives`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# The outer keys are settings that choose. The inner dictionaries map each dependent setting to the
# values with which it is used. Settings that are not listed are used with every value.
CHOICES: dict[str, dict[str, tuple[str | None, ...]]] = {
    "norm": {"images": ("activation",), "sequential": ("activation",)},
    "kind": {
        "group": ("iterative", "hybrid"),
        "order": ("iterative", "hybrid"),
        "stages": ("multi_stage",),
        # The kind of a dataset. None: the name of the entry is the kind.
        "function": ("function",),
        "arguments": ("function",),
        **dict.fromkeys(("train", "validation"), ("imagefolder", "arrays", None)),
        **dict.fromkeys(
            ("search", "skip_unreadable", "store_pixels", "cache_gib", "threads"),
            ("cifar10", "fashion_mnist", "imagefolder", None),
        ),
    },
    "schedule": {"step_at": ("step",), "step_factor": ("step",)},
    "optimizer": {"momentum": ("sgd",)},
    "calibration": {"percentile": ("percentile",)},
}

# Settings that can define the training budget.
BUDGETS = frozenset({"steps", "epochs", "total_steps"})

# Settings that replace each other. Each alternative holds its names, and the settings that can be
# used only with it.
_Alternative = tuple[frozenset[str], frozenset[str]]
ALTERNATIVES: tuple[tuple[_Alternative, ...], ...] = (
    # The training budget.
    (
        (frozenset({"steps"}), frozenset()),
        (frozenset({"epochs"}), frozenset()),
        (frozenset({"total_steps"}), frozenset({"last_share"})),
    ),
    # The target.
    (
        (frozenset({"accuracy_drop"}), frozenset()),
        (frozenset({"macs", "parameters", "size_bytes", "latency_ms"}), frozenset()),
    ),
)


def misplaced(setting: str, value: Any, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are not used with `setting: value`."""
    users = CHOICES[setting]
    return [name for name in names if value not in users.get(name, (value,))]


def replaced_by(entries: Mapping[str, Any]) -> set[str]:
    """Return the names of settings whose earlier values are dropped when `entries` are set."""
    dropped: set[str] = set()
    names = {name for name, value in entries.items() if value is not None}
    for setting in CHOICES.keys() & names:
        if isinstance(entries[setting], str):
            dropped.update(misplaced(setting, entries[setting], CHOICES[setting]))
    for group in ALTERNATIVES:
        for alternative in group:
            if alternative[0] & names:
                for others, companions in group:
                    if others is not alternative[0]:
                        dropped |= others | companions
    return dropped
