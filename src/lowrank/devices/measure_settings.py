"""The settings of a measurement, and the form in which devices declare their settings.

Settings are fields of a plain dataclass, declared with `setting`. From such a class,
`lowrank.config.device_kinds` makes the check of params.yaml, and the descriptions for editors.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from typing import TYPE_CHECKING, Any

from lowrank.devices.device import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Graph optimization levels.
OPTIMIZATIONS = ("all", "extended", "basic", "none")

# Words and test of each bound of a number.
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("of at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("of at most", operator.le),
    "lt": ("below", operator.lt),
}


def setting(description: str, *, default: Any = dataclasses.MISSING, **constraints: Any) -> Any:
    """Declare a setting: a field of a dataclass. Without a default, users must give it.

    Parameters
    ----------
    description : str
        What the setting means, with its unit, for users.
    default : object
        Value of the setting if params.yaml does not give it.
    constraints
        `ge`, `gt`, `le`, `lt`: bounds of a number. `choices`: the possible values. `pattern`: a
        regular expression for a text. `path=True`: the text is a path. `several=True`: params.yaml
        may list several values, of which each is measured.
    """
    return dataclasses.field(default=default, metadata={"description": description, **constraints})


def check_settings(settings: Any, owner: str) -> None:
    """Check the values of a dataclass of settings against their constraints.

    Raises DeviceError that names `owner`, the setting, its value and the expected value.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if expected := _violated(value, field.metadata):
            raise DeviceError(
                f"{owner} setting '{field.name}' is {value!r}; it must be {expected}. Correct it "
                "in params.yaml."
            )


def _violated(value: Any, constraints: Mapping[str, Any]) -> str | None:
    """Return what a value must be, or None if it meets its constraints."""
    bounds = {name: constraints[name] for name in _BOUNDS if name in constraints}
    if bounds:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and all(_BOUNDS[name][1](value, bounds[name]) for name in bounds)):
            limits = [f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items()]
            return f"a number {' and '.join(limits)}"
    if "choices" in constraints and value not in constraints["choices"]:
        return f"one of {', '.join(map(str, constraints['choices']))}"
    pattern = constraints.get("pattern")
    if pattern and not (isinstance(value, str) and re.fullmatch(pattern, value)):
        description = constraints["description"].rstrip(".")
        return f"the {description[0].lower()}{description[1:]}"
    return None


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """The settings of a measurement, which all kinds of device have.

    Raises DeviceError for a value that the description of its setting excludes.
    """

    threads: int = setting(
        "Number of threads inside one operator. If this is a list, each number is measured, and "
        "targets refer to the first.",
        default=1,
        ge=1,
        le=1024,
        several=True,
    )
    batch_size: int = setting(
        "Number of images in one run. If this is a list, each batch size is measured with each "
        "number of threads, and targets refer to the first.",
        default=1,
        ge=1,
        several=True,
    )
    optimization: str = setting(
        "Level of ONNX Runtime's graph optimization.", default="all", choices=OPTIMIZATIONS
    )
    sittings: int = setting(
        "Number of processes over which a measurement is divided. Each one warms both models up, "
        "then alternates between turns of one model and turns of the other. The location of a "
        "model in memory affects its latency and is random, but does not change within a process.",
        default=5,
        ge=1,
    )
    turn_runs: int = setting(
        "Number of consecutive runs of one model before the other model's turn. The first run of a "
        "turn finds the other model's data in the processor caches and is not counted. With 1, it "
        "is counted, as if other work ran between any two runs.",
        default=10,
        ge=1,
    )
    repeats: int = setting(
        "Minimum number of counted runs of each model, over all processes.", default=50, ge=1
    )
    seconds: float = setting(
        "Minimum measuring time, in seconds, of both models together, over all processes. 0: only "
        "`repeats` counts.",
        default=2.0,
        ge=0,
    )
    warmup_seconds: float = setting(
        "Warm-up time before the measurement, in seconds, for each model in each process. The "
        "warm-up takes up to ten times as long, until the latency is stable.",
        default=0.5,
        ge=0,
    )
    energy_seconds: float = setting(
        "Time over which energy is measured, in seconds: of each model, and of the idle device "
        "before and after. Only for devices with an energy counter. 0: energy is not measured.",
        default=5.0,
        ge=0,
    )
    provider: str = setting("Execution provider of ONNX Runtime.", default="CPUExecutionProvider")

    def __post_init__(self) -> None:
        check_settings(self, "benchmark")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> MeasureSettings:
        """Create settings from a dictionary. Missing entries take their default.

        Raises DeviceError for unknown names and invalid values.
        """
        known = names_of(cls)
        for name in settings:
            if name not in known:
                raise DeviceError(
                    f"unknown benchmark setting '{name}'. Known: {', '.join(sorted(known))}. "
                    "Correct it in params.yaml."
                )
        return cls(**settings)


def names_of(settings: Any) -> list[str]:
    """Return the names of the fields of a dataclass of settings."""
    return [field.name for field in dataclasses.fields(settings)]


# Settings that accept a list of values.
_LIST_SETTINGS = [
    field.name for field in dataclasses.fields(MeasureSettings) if field.metadata.get("several")
]


def combinations(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each measurement on a device by name, the main measurement first.

    Lists of values are expanded to every combination. `settings` is a section of params.yaml: the
    settings that belong to the kind of device are left out, as they are no settings of a
    measurement.
    """
    measurement = {name: settings[name] for name in names_of(MeasureSettings) if name in settings}
    values_by_name = {
        name: measurement[name]
        if isinstance(measurement[name], (list, tuple))
        else [measurement[name]]
        for name in _LIST_SETTINGS
        if name in measurement
    }
    measurements = {}
    for values in itertools.product(*values_by_name.values()):
        chosen = dict(zip(values_by_name, values))  # noqa: B905  (`strict` is Python 3.10's)
        name = "_".join(f"{key}_{value}" for key, value in chosen.items())
        measurements[name] = {**measurement, **chosen}
    return measurements


def main_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the main measurement, the first of `combinations`."""
    return next(iter(combinations(settings).values()))
