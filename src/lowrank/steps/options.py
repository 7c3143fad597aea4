"""Declare the options of steps, and derive the shell command of a rule from them.

A step has an option for each input, output and parameter of its rule, with the same name. So the
shell command of a rule follows from the options of its step; see `command`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ValidationError

from lowrank.config.network_source import NetworkSource
from lowrank.settings.mistakes import described
from lowrank.tasks import DEFAULT_TASK

Decorator = Callable[[Any], Any]


class StepOption(click.Option):
    """An option whose value comes from a part of the rule. `template` is its placeholder.

    The template of a path that a step keeps (`is_kept`) is a path instead. `is_stored` says that
    other rules make the files in it.
    """

    def __init__(
        self,
        *arguments: Any,
        template: str,
        is_kept: bool = False,
        is_stored: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.template, self.is_kept, self.is_stored = template, is_kept, is_stored


class _Path(click.ParamType):
    """A path. The empty text stands for no path."""

    name = "path"

    def convert(self, value: Any, parameter: Any, context: Any) -> Path | None:
        return Path(value) if value else None


class _Paths(click.ParamType):
    """Paths separated by spaces."""

    name = "paths"

    def convert(self, value: Any, parameter: Any, context: Any) -> list[Path]:
        return [Path(path) for path in value.split()] if isinstance(value, str) else value


class _Network(click.ParamType):
    """The source of a network: a name, or JSON with the same entries as in params.yaml."""

    name = "network"

    def convert(self, value: Any, parameter: Any, context: Any) -> NetworkSource:
        return NetworkSource.parse(value) if isinstance(value, str) else value


class Json(click.ParamType):
    """A JSON document. With a model, it is validated and converted to an instance of the model."""

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
    """Declare an input file or folder. If `optional`, it is None for rules without it."""
    return _option(name, f"{{input.{name}:q}}", description, _Path(), "" if optional else None)


def input_paths(name: str, description: str) -> Decorator:
    """Declare a list of input files under one name. The list may be empty."""
    return _option(name, f"'{{input.{name}}}'", f"{description} Separated by spaces.", _Paths(), "")


def output_path(name: str, description: str) -> Decorator:
    """Declare an output file or folder."""
    return _option(name, f"{{output.{name}:q}}", f"Output: {description}", _Path(), None)


def output_paths(name: str, description: str) -> Decorator:
    """Declare a list of output files under one name."""
    help_text = f"Output: {description} Separated by spaces."
    return _option(name, f"'{{output.{name}}}'", help_text, _Paths(), None)


def parameter(name: str, description: str, kind: Any = str, default: Any = None) -> Decorator:
    """Declare a parameter of the rule. It is required unless it has a default."""
    return _option(name, f"{{params.{name}:q}}", description, kind, default)


def wildcard(
    name: str,
    description: str,
    kind: Any = str,
    *,
    default: Any = None,
    variable: str | None = None,
) -> Decorator:
    """Declare a wildcard of the rule. `variable` is its name in the step, by default `name`."""
    return _option(name, f"{{wildcards.{name}}}", description, kind, default, variable)


def kept_path(name: str, template: str, description: str, *, is_stored: bool = False) -> Decorator:
    """Declare a file or folder that a step uses at a fixed path, without being an input or output.

    `template` is the path, with Snakemake's placeholders. It is a cache of the machine that runs
    the step. With `is_stored`, it is a folder of other rules' outputs, which are the rule's inputs.
    """
    return _option(name, template, description, _Path(), None, is_kept=True, is_stored=is_stored)


def network_option(step: Any) -> Any:
    """Declare the parameter that describes how the network is built."""
    description = "How the network is built: its name, or JSON as under `checkpoint.<network>`."
    return parameter("network", description, _Network())(step)


def task_option(step: Any) -> Any:
    """Declare the parameter that names the task of the network."""
    description = "Name of the task of the network, or the user's metric as JSON."
    return parameter("task", description, default=DEFAULT_TASK)(step)


def reference_option(step: Any) -> Any:
    """Declare the input for tasks that compare with the original network."""
    description = "The original network, safetensors, for a task that compares with it."
    return input_path("reference", description, optional=True)(step)


def tasks_option(step: Any) -> Any:
    """Declare the parameter that names the task of each network, for steps with several."""
    return parameter("tasks", "Name of the task by network, JSON.", Json(), default="{}")(step)


def _option(
    name: str,
    template: str,
    description: str,
    kind: Any,
    default: Any,
    variable: str | None = None,
    **place: bool,
) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}",
        variable or name,
        cls=StepOption,
        template=template,
        **place,
        type=kind,
        # Click would treat an explicit default of None as a default.
        **({"required": True} if default is None else {"default": default}),
        help=description,
    )


def command(step: str, prefix: str = "", copies: str | None = None) -> str:
    """Return the shell command of a rule that runs a step, with Snakemake's placeholders.

    `prefix` is that of the paths of a module's rules, which Snakemake does not add to a command.
    `copies` is that of files on storage, by default the same.

    Raises AttributeError for a name that is not a step.
    """
    options = getattr(importlib.import_module(f"lowrank.steps.{step}"), step).params
    stored = prefix if copies is None else copies
    words = [
        f"{option.opts[0]}={_prefix(option, prefix, stored)}{option.template}"
        for option in options
        if isinstance(option, StepOption)
    ]
    return " ".join([f"lowrank {step}", "--log={log:q}", f"--label='{step} {{wildcards}}'", *words])


def _prefix(option: StepOption, prefix: str, stored: str) -> str:
    if not option.is_kept:
        return ""
    return stored if option.is_stored else prefix
