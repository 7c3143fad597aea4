"""Functions of the graph store their signatures, for which Snakemake asks before each call."""

import inspect

from lowrank.graph.compress import CompressRules
from lowrank.graph.pipeline import Graph
from lowrank.graph.rules import with_signature


def test_a_stored_signature_is_the_true_one():
    def memory(wildcards: str, attempt: int = 1) -> int:
        return attempt

    before = inspect.signature(memory)
    assert with_signature(memory) is memory
    assert memory.__signature__ == inspect.signature(memory) == before


def test_the_methods_of_the_graph_store_their_signatures():
    for class_ in (Graph, CompressRules):
        methods = [value for value in vars(class_).values() if inspect.isfunction(value)]
        assert methods
        assert all("__signature__" in vars(method) for method in methods)
    # A bound method has no `self`.
    method = inspect.signature(CompressRules.state_before.__get__(object()))
    assert list(method.parameters) == ["wildcards"]
