"""The settings of a measurement, and the form in which devices declare their settings.

Settings are fields of a plain dataclass, declared with `setting`. From such a class,
`lowrank.config.device_kinds` makes the check of params.yaml, and the descriptions for editors.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.devices.device import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Graph optimization levels.
OPTIMIZATIONS = ("all", "extended", "basic", "none")

# Each runtime has a module of this name. It is not imported before the runtime is used.
MODULE_OF_RUNTIME = "lowrank.devices.runtime_{}"
_MODULE_PREFIX = MODULE_OF_RUNTIME.format("").rpartition(".")[2]
RUNTIMES = tuple(
    sorted(
        module.name[len(_MODULE_PREFIX) :]
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name.startswith(_MODULE_PREFIX)
    )
)

# Settings that only ONNX Runtime has.
ONNXRUNTIME_SETTINGS = ("provider", "optimization")

# Words and test of each bound of a number.
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("of at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("of at most", operator.le),
    "lt": ("below", operator.lt),
}


def setting(
    description: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    **constraints: Any,
) -> Any:
    """Declare a setting: a field of a dataclass. Without a default, users must give it.

    Parameters
    ----------
    description : str
        What the setting means, with its unit, for users.
    default : object
        Value of the setting if params.yaml does not give it.
    default_factory : callable
        Function that returns the default, for values that can change, such as `dict`.
    constraints
        `ge`, `gt`, `le`, `lt`: bounds of a number. `choices`: the possible values. `pattern`: a
        regular expression for a text. `path=True`: the text is a path. `several=True`: params.yaml
        may list several values, of which each is measured.
    """
    metadata = {"description": description, **constraints}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
    runtime: str = setting(
        "Program that runs the ONNX files. If this is a list, each runtime is measured with each "
        "number of threads and batch size, targets refer to the first, and the result names the "
        "fastest runtime for each file.",
        default="onnxruntime",
        choices=RUNTIMES,
        several=True,
    )
    session: dict[str, Any] = setting(  # noqa: RUF009  (`setting` returns a field.)
        "Options for the runtime, by name: session configuration entries of ONNX Runtime, or "
        "properties of OpenVINO for the compilation of a model. For several runtimes, a mapping "
        "of options for each, by the name of the runtime.",
        default_factory=dict,
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
        for name, value in self.session.items():
            if not isinstance(value, (str, int, float)):
                raise DeviceError(
                    f"benchmark setting 'session' has the value {value!r} for '{name}'; it must be "
                    "a text, a number, true or false. Correct it in params.yaml."
                )

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


def default_of(name: str) -> Any:
    """Return the default of a setting of a measurement, one without a `default_factory`."""
    (field,) = (field for field in dataclasses.fields(MeasureSettings) if field.name == name)
    return field.default


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
    runtimes = values_by_name.get("runtime", [])
    measurements = {}
    for values in itertools.product(*values_by_name.values()):
        chosen = dict(zip(values_by_name, values))  # noqa: B905  (`strict` is Python 3.10's)
        # A single runtime is not named, so that keys of results do not depend on it.
        name = "_".join(
            f"{key}_{value}" for key, value in chosen.items() if key != "runtime" or runtimes[1:]
        )
        measurements[name] = _for_runtime({**measurement, **chosen}, runtimes)
    return measurements


def _for_runtime(settings: dict[str, Any], runtimes: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a measurement with one of several runtimes.

    Raises DeviceError if there are several runtimes and `session` does not name them.
    """
    session: dict[str, Any] = settings.get("session") or {}
    runtime = settings.get("runtime", default_of("runtime"))
    is_by_runtime = bool(session) and all(
        name in RUNTIMES and isinstance(options, dict) for name, options in session.items()
    )
    if is_by_runtime:
        settings = {**settings, "session": session.get(runtime, {})}
    elif session and len(runtimes) > 1:
        raise DeviceError(
            f"benchmark setting 'session' is {session!r}, but there are several runtimes; it must "
            f"be a mapping of options for each, such as `session: {{{runtime}: {{...}}}}`. Correct "
            "it in params.yaml."
        )
    if runtime != "onnxruntime" and "onnxruntime" in runtimes:
        settings = {**settings, **{name: default_of(name) for name in ONNXRUNTIME_SETTINGS}}
    return settings


def main_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the main measurement, the first of `combinations`."""
    return next(iter(combinations(settings).values()))
