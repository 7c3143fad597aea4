"""Settings that only some choice of another setting uses: `energy` only for `select: energy`."""

from collections.abc import Iterable, Mapping
from typing import Any

_ALL_BUT_BUDGET = ("vbmf", "energy", "ratio", "sensitivity", "fixed")
_ALL_BUT_FIXED = ("vbmf", "energy", "ratio", "sensitivity", "budget")

# By the setting that chooses: each setting that belongs to some of its values, and those values.
# A setting that is not here goes with every value.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "select": {
        "energy": ("energy",),
        "ratio": ("ratio", "sensitivity"),
        "cost": ("ratio", "sensitivity"),
        "trial_ratio": ("sensitivity",),
        "images": ("sensitivity", "budget"),
        "target": ("budget",),
        "search": ("budget",),
        "table": ("fixed",),
        # Weaker ranks would miss the target.
        "weaken": _ALL_BUT_BUDGET,
        # The table names its layers.
        "negligible": _ALL_BUT_FIXED,
    },
    "norm": {"images": ("activation",), "sequential": ("activation",)},
    "kind": {
        "group": ("iterative", "hybrid"),
        "order": ("iterative", "hybrid"),
        "stages": ("multi_stage",),
    },
    "schedule": {"step_at": ("step",), "step_factor": ("step",)},
    "optimizer": {"momentum": ("sgd",)},
    "calibration": {"percentile": ("percentile",)},
}

# A budget of training can be given in any of these.
BUDGETS = frozenset({"steps", "epochs", "total_steps"})

# Settings of which one takes the place of the others: names, and what only goes with them.
_Alternative = tuple[frozenset[str], frozenset[str]]
ALTERNATIVES: tuple[tuple[_Alternative, ...], ...] = (
    # The budget of training.
    (
        (frozenset({"steps"}), frozenset()),
        (frozenset({"epochs"}), frozenset()),
        (frozenset({"total_steps"}), frozenset({"last_share"})),
    ),
    # What a target bounds.
    (
        (frozenset({"accuracy_drop"}), frozenset()),
        (frozenset({"macs", "parameters", "size_bytes", "latency_ms"}), frozenset()),
    ),
)


def misplaced(setting: str, value: Any, names: Iterable[str]) -> list[str]:
    """Those of the names that do not go with `setting: value`."""
    belongs = CHOICES[setting]
    return [name for name in names if value not in belongs.get(name, (value,))]


def replaced_by(entries: Mapping[str, Any]) -> set[str]:
    """The names whose earlier values are void once these entries are given."""
    void: set[str] = set()
    given = {name for name, value in entries.items() if value is not None}
    for setting in CHOICES.keys() & given:
        if isinstance(entries[setting], str):
            void.update(misplaced(setting, entries[setting], CHOICES[setting]))
    for group in ALTERNATIVES:
        for alternative in group:
            if alternative[0] & given:
                for names, companions in group:
                    if names is not alternative[0]:
                        void |= names | companions
    return void
