"""Import and call a function of the user, named as `package.module:function`."""

import importlib
import inspect
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowrank.errors import UserError, unknown_name


def imported_function(name: str, label: str) -> Callable[..., Any]:
    """Import the function `package.module:function`, with the current folder on the path.

    Raises UserError if the module is missing or cannot be imported, or has no such function.
    `label` is the parameter that messages name.
    """
    module_name, _, function_name = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109  (sys.path holds strings)
        sys.path.insert(0, folder)
    try:
        with _hidden_command_line():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"{label}: there is no module '{error.name}' in the current folder ({folder}) or "
                "in the installed packages. Run from the folder that contains it, install its "
                "package, or correct the name."
            ) from error
        raise _import_failed(module_name, label, error) from error
    except SystemExit as error:
        raise UserError(
            f"{label}: importing its module ends the program (exit status {error.code}). Move the "
            'code that runs as a program under `if __name__ == "__main__":`.'
        ) from error
    except Exception as error:
        raise _import_failed(module_name, label, error) from error
    try:
        function = operator.attrgetter(function_name)(module)
    except AttributeError as error:
        functions = [key for key, value in vars(module).items() if inspect.isroutine(value)]
        raise unknown_name("function", function_name, functions, where=label) from error
    if not callable(function):
        raise UserError(
            f"{label}: '{function_name}' is {described(function)}, expected a function."
        )
    return function  # type: ignore[no-any-return]


def called_function(function: Callable[..., Any], arguments: Mapping[str, Any], label: str) -> Any:
    """Call a function of the user. Raises UserError if it fails or takes other arguments."""
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:  # Some functions written in C have no signature.
        pass
    except TypeError as error:
        raise UserError(
            f"{label}: it accepts {inspect.signature(function)}, but `arguments` is "
            f"{dict(arguments)} ({error}). Correct `arguments` in params.yaml; outside the "
            "pipeline, name a function that needs no arguments."
        ) from error
    try:
        with _hidden_command_line():
            return function(**arguments)
    except SystemExit as error:
        raise UserError(
            f"{label}: its function ends the program (exit status {error.code}) with `arguments` "
            f"{dict(arguments)}. Change the function so that it returns its result."
        ) from error
    except Exception as error:
        raise UserError(
            f"{label}: it fails with `arguments` {dict(arguments)}: {reason_of(error)}. Correct "
            "`arguments` in params.yaml or the function."
        ) from error


def reason_of(error: BaseException) -> str:
    """Return the type and first line of an error, and the line of the user's code that raised it.

    The user's code is what lies below the current folder.
    """
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    message = f"{kind}: {lines[0].strip().rstrip('.')}" if lines else kind
    here = Path.cwd()
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(here)
    ]
    if not own:
        return message
    frame = own[-1]
    return (
        f"{message} ({Path(frame.filename).relative_to(here)}, line {frame.lineno}: {frame.line})"
    )


def described(value: Any) -> str:
    """Return what a value is, for messages: `a dict`, `the class Linear`, or `nothing`."""
    name = type(value).__name__
    if value is None or isinstance(value, type):
        return "nothing" if value is None else f"the class {value.__name__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _import_failed(module: str, label: str, error: BaseException) -> UserError:
    return UserError(
        f"{label}: its module cannot be imported: {reason_of(error)}. Correct the module; "
        f"`python -c 'import {module}'` shows the full error."
    )


@contextmanager
def _hidden_command_line() -> Iterator[None]:
    """Hide this program's command line from user code that parses arguments."""
    command_line = sys.argv
    sys.argv = command_line[:1]
    try:
        yield
    finally:
        sys.argv = command_line
