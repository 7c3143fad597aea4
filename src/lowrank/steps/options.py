"""Options of the steps, and the command of a rule that gives them.

A rule names its inputs, outputs and parameters; its step has an option of the same name for each.
So the shell command of a rule follows from the options of its step: see `command`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ValidationError

from lowrank.config.mistakes import described
from lowrank.config.network_source import NetworkSource

Decorator = Callable[[Any], Any]


class StepOption(click.Option):
    """An option whose value comes from the part of a rule that `template` names."""

    def __init__(self, *arguments: Any, template: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.template = template


class _Path(click.ParamType):
    """A path; the empty text stands for none."""

    name = "path"

    def convert(self, value: Any, parameter: Any, context: Any) -> Path | None:
        return Path(value) if value else None


class _Paths(click.ParamType):
    """Paths separated by spaces."""

    name = "paths"

    def convert(self, value: Any, parameter: Any, context: Any) -> list[Path]:
        return [Path(path) for path in value.split()] if isinstance(value, str) else value


class _Network(click.ParamType):
    """The source of a network: a name, or JSON as params.yaml describes it."""

    name = "network"

    def convert(self, value: Any, parameter: Any, context: Any) -> NetworkSource:
        return NetworkSource.parse(value) if isinstance(value, str) else value


class Json(click.ParamType):
    """A JSON document; with a model, checked by it and returned as its instance."""

    name = "json"

    def __init__(self, model: type[BaseModel] | None = None) -> None:
        self._model = model

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            document = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not a JSON document: {error}", parameter, context)
        if self._model is None:
            return document
        try:
            return self._model.model_validate(document)
        except ValidationError as error:
            self.fail(described(error, self._model, document), parameter, context)


def input_path(name: str, description: str, *, optional: bool = False) -> Decorator:
    """Declare an input file or folder; `optional` ones are None where the rule has none."""
    return _option(name, f"{{input.{name}:q}}", description, _Path(), "" if optional else None)


def input_paths(name: str, description: str) -> Decorator:
    """Declare input files under one name, of which there may be none."""
    return _option(name, f"'{{input.{name}}}'", f"{description} Separated by spaces.", _Paths(), "")


def output_path(name: str, description: str) -> Decorator:
    """Declare an output file or folder."""
    return _option(name, f"{{output.{name}:q}}", f"Output: {description}", _Path(), None)


def output_paths(name: str, description: str) -> Decorator:
    """Declare output files under one name."""
    described = f"Output: {description} Separated by spaces."
    return _option(name, f"'{{output.{name}}}'", described, _Paths(), None)


def parameter(name: str, description: str, kind: Any = str, default: Any = None) -> Decorator:
    """Declare a parameter of the rule. Without a default it is required."""
    return _option(name, f"{{params.{name}:q}}", description, kind, default)


def wildcard(
    name: str,
    description: str,
    kind: Any = str,
    *,
    default: Any = None,
    variable: str | None = None,
) -> Decorator:
    """Declare a wildcard of the rule; `variable` is its name in the step, by default the same."""
    return _option(name, f"{{wildcards.{name}}}", description, kind, default, variable)


def kept_path(name: str, template: str, description: str) -> Decorator:
    """Declare a file that outlives the job without being its output, by its path."""
    return _option(name, template, description, _Path(), None)


def network_option(step: Any) -> Any:
    """Declare the parameter that says how the network is built."""
    description = "How the network is built: its name, or JSON as under `checkpoint.<network>`."
    return parameter("network", description, _Network())(step)


def _option(
    name: str, template: str, description: str, kind: Any, default: Any, variable: str | None = None
) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}",
        variable or name,
        cls=StepOption,
        template=template,
        type=kind,
        # An explicit default of None would count as one.
        **({"required": True} if default is None else {"default": default}),
        help=description,
    )


def command(step: str) -> str:
    """Return the shell command of a rule that runs a step, with Snakemake's placeholders.

    Raises AttributeError for a name that is no step.
    """
    options = getattr(importlib.import_module(f"lowrank.steps.{step}"), step).params
    given = [f"{each.opts[0]}={each.template}" for each in options if isinstance(each, StepOption)]
    return " ".join([f"lowrank {step}", "--log={log:q}", f"--label='{step} {{wildcards}}'", *given])
