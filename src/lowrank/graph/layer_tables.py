"""Read and make layer tables, which describe networks to the graph before anything runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.core.layers import LayerTable
from lowrank.errors import UserError
from lowrank.files import read_json, sha256_of, write_text
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
        """Return the digest of a network's own code or ONNX file, or `lowrank` without one."""
        source = self.graph.source(model)
        if source.onnx:
            path = Path(source.onnx)
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file (`checkpoint.{model}` in params.yaml). Put the ONNX "
                    "file there, or correct the path."
                )
            return sha256_of(path)
        return _code_of(source.factory) if source.factory else "lowrank"

    def metric_code(self, model: str) -> str:
        """Return the digest of the user's code that measures a network; empty without one."""
        metric = self.params.checkpoint[model].metric
        return _code_of(metric.function) if metric else ""

    def network_codes_json(self, _: Any = None) -> str:
        """Return the code digest of every network, as JSON."""
        return json.dumps(self.network_codes())

    def network_codes(self) -> dict[str, str]:
        """Return the digest of the code that builds and measures every network.

        The digest of an ONNX file is not included, because DVC watches the file itself.

        Raises UserError for code that DVC does not watch.
        """
        codes = {}
        for model, settings in self.params.checkpoint.items():
            functions = {
                "factory": self.graph.source(model).factory,
                "metric": settings.metric.function if settings.metric else None,
            }
            own = {name: function for name, function in functions.items() if function}
            for name, function in own.items():
                files = files_of_module(function.partition(":")[0])
                require_watched(files, "code", f"`checkpoint.{model}.{name}` ({function})")
            codes[model] = " ".join(map(_code_of, own.values())) or "lowrank"
        return codes

    @functools.cache  # noqa: B019  (There is one graph per process.)
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

    def code_of_stored(self, _: Wildcards) -> str:
        """Return the digest of the code that makes a table on storage; empty without storage.

        A table in this folder is made again when the graph is read: see `read`.
        """
        return digest_of_step("inspect") if self.graph.stored_at else ""

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


def _code_of(function: str) -> str:
    """Return the digest of the module of `package.module:function` and of what it imports."""
    return digest_of_module(function.partition(":")[0])
