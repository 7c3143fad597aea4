"""Layer tables: what the graph knows of a network before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.core.layers import LayerTable
from lowrank.files import read_json, write_text
from lowrank.graph.code_digests import digest_of_module, digest_of_step, files_of_module
from lowrank.graph.dvc_stages import (
    require_watched,
)
from lowrank.graph.names import (
    TABLE_CODE,
    TABLES,
    Wildcards,
)
from lowrank.graph.processes import run_step

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class LayerTables:
    """Reads the layer tables of networks, and makes those that are missing or stale."""

    def __init__(self, graph: Graph, folder: Path = TABLES) -> None:
        self.graph, self.params = graph, graph.params
        self._tables = folder

    def network_code(self, model: str) -> str:
        """Digest of the user's code that builds a network; what lowrank has is the steps' code."""
        factory = self.graph.source(model).factory
        return digest_of_module(factory.partition(":")[0]) if factory else "lowrank"

    def network_codes_json(self, _: Any = None) -> str:
        """Return the code digest of every network, as JSON."""
        return json.dumps(self.network_codes())

    def network_codes(self) -> dict[str, str]:
        """Return the code digest of every network.

        Raises UserError for code that DVC does not watch.
        """
        for model in self.params.checkpoint:
            factory = self.graph.source(model).factory
            if factory:
                files = files_of_module(factory.partition(":")[0])
                require_watched(files, "code", f"`checkpoint.{model}.factory` ({factory})")
        return {model: self.network_code(model) for model in self.params.checkpoint}

    def read(self, model: str) -> LayerTable:
        path, source = self._tables / f"{model}.json", self.graph.source(model).to_json()
        # A table of the network as it was described or written before is no use.
        if not self._is_current(path, model):
            # In a process of its own: the graph must not wait for PyTorch every time.
            arguments = ["inspect", "--name", model, "--output", str(path), "--"]
            run_step([*arguments, json.dumps(source)], output=path, about=f"checkpoint.{model}")
            self._note_code_of_table(model)
        return LayerTable.from_json(read_json(path))

    def table(self, wildcards: Wildcards) -> str:
        """The layer table of a network, which is made when the graph is read where it is stale."""
        self.read(wildcards.model)
        return str(self._tables / f"{wildcards.model}.json")

    def _is_current(self, path: Path, model: str) -> bool:
        if not path.exists():
            return False
        table, source = read_json(path), self.graph.source(model).to_json()
        if table.get("source", source) != source:
            return False
        if table.get("code", "lowrank") != self.network_code(model):
            return False
        # Shipped tables fit the code beside them; from then on a note says what code made them.
        note = TABLE_CODE / model
        if not note.exists():
            self._note_code_of_table(model)
        return note.read_text() == digest_of_step("inspect")

    @staticmethod
    def _note_code_of_table(model: str) -> None:
        write_text(TABLE_CODE / model, digest_of_step("inspect"))
