"""The common part of the answers for the files in workflow/rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def with_signature(function: Function) -> Function:
    """Store the signature of a function in it, and return the function.

    Snakemake asks for the signature before each call. Python computes it each time if it is not
    stored, which took 8 % of the time of a dry run for 1,000 variants.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def with_signatures(class_: Class) -> Class:
    """Store the signatures of all methods of a class in them, and return the class."""
    for function in filter(inspect.isfunction, vars(class_).values()):
        with_signature(function)
    return class_


class Rules:
    """Inputs and settings of the rules in one file of workflow/rules."""

    def __init_subclass__(cls) -> None:
        with_signatures(cls)

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params
