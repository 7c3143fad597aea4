"""The common part of the answers for the files in workflow/rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class Rules:
    """Inputs and settings of the rules in one file of workflow/rules."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params
