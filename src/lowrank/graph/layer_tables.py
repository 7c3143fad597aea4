"""Read and make layer tables, which describe networks to the graph before anything runs."""

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
from lowrank.graph.rules import Rules

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class LayerTables(Rules):
    """The layer tables of the networks. Missing and stale tables are made when they are read."""

    def __init__(self, graph: Graph, folder: Path = TABLES) -> None:
        super().__init__(graph)
        self._tables = folder

    def network_code(self, model: str) -> str:
        """Return the digest of the user's code that builds a network, or `lowrank` without one."""
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
        """Return the layer table of a network.

        Raises UserError if the table must be made and the network cannot be built.
        """
        path, source = self._tables / f"{model}.json", self.graph.source(model).to_json()
        # A table is stale if the description or the code of the network has changed.
        if not self._is_current(path, model):
            # A separate process imports PyTorch, so reading the graph stays fast otherwise.
            arguments = ["inspect", "--name", model, "--output", str(path), "--"]
            run_step([*arguments, json.dumps(source)], output=path, about=f"checkpoint.{model}")
            self._write_code_note(model)
        return LayerTable.from_json(read_json(path))

    def table(self, wildcards: Wildcards) -> str:
        """Return the path of a network's layer table, after making it if it is stale."""
        self.read(wildcards.model)
        return f"{TABLES}/{wildcards.model}.json"

    def _is_current(self, path: Path, model: str) -> bool:
        if not path.exists():
            return False
        table, source = read_json(path), self.graph.source(model).to_json()
        if table.get("source", source) != source:
            return False
        if table.get("code", "lowrank") != self.network_code(model):
            return False
        # Shipped tables match the code that they are shipped with, so the note is made now. Later
        # changes of the code differ from the note.
        note = self._code_note(model)
        if not note.exists():
            self._write_code_note(model)
        return note.read_text() == digest_of_step("inspect")

    def _write_code_note(self, model: str) -> None:
        write_text(self._code_note(model), digest_of_step("inspect"))

    def _code_note(self, model: str) -> Path:
        return Path(self.graph.prefix, TABLE_CODE, model)
