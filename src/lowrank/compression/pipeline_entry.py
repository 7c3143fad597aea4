"""Entries of params.yaml that compress a network in the pipeline as `lowrank compress` does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lowrank.config.reading import parse_params
from lowrank.errors import UserError
from lowrank.files import write_text
from lowrank.settings.document import read_document

Entries = dict[str, dict[str, Any]]


def entries_for(
    model: str,
    weights: str,
    images: Path,
    *,
    network: Mapping[str, Any],
    factorize: Mapping[str, Any],
    ranks: Mapping[str, Any],
    int8: bool,
) -> Entries:
    """Return an entry for each section of params.yaml, by section and name.

    Parameters
    ----------
    model
        Name of the network, which becomes the name of its entry.
    weights
        File with its weights.
    images
        Folder of images.
    network
        Source, sizes and preprocessing of the network, as under `checkpoint.<network>`.
    factorize, ranks
        Sections of the method.
    int8
        Whether the network is also quantized.
    """
    name, data = name_from(model), name_from(images.name or "images")
    method: dict[str, Any] = {
        "factorize": dict(factorize),
        "ranks": dict(ranks),
        "finetune": {"steps": 0},
    }
    if int8:
        method["quantize"] = "int8"
    checkpoint = {"weights": weights, **network, "task": "agreement", "dataset": data}
    return {
        "dataset": {data: {"kind": "imagefolder", "train": str(images)}},
        "checkpoint": {name: checkpoint},
        "methods": {f"{name}_small": method},
    }


def text_of(entries: Entries) -> str:
    """Return the entries as YAML."""
    return yaml.safe_dump(entries, sort_keys=False, default_flow_style=None)


def command_for(entries: Entries) -> str:
    """Return the command that makes the result of the entries."""
    (model,), (method,) = entries["checkpoint"], entries["methods"]
    return f"snakemake --cores 2 results/{model}_{method}.json"


def append(entries: Entries, path: Path) -> None:
    """Add the entries to a params.yaml. Its comments and its other entries stay as they are.

    Raises UserError if the file is missing or invalid, has an entry of the same name, or has no
    section in the usual form. Nothing is written then.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Run this command in the folder of a project.")
    before = read_document(path).entries
    text = path.read_text()
    for section, named in entries.items():
        (name,) = named
        if name in (before.get(section) or {}):
            raise UserError(
                f"{path}: `{section}` already has an entry '{name}'. Rename it, or the file."
            )
        block = yaml.safe_dump(named, sort_keys=False, default_flow_style=None)
        header = re.search(rf"^{section}:[ \t]*(#.*)?\n", text, re.MULTILINE)
        if header is None:
            raise UserError(
                f"{path}: has no section `{section}:` on a line of its own. Add the entries by "
                f"hand:\n{text_of(entries)}"
            )
        indented = "".join(f"  {line}\n" for line in block.splitlines())
        text = text[: header.end()] + indented + text[header.end() :]
    with_entries = yaml.safe_load(text)
    parse_params(with_entries)
    write_text(path, text)


def name_from(text: str) -> str:
    """Return a text as a name: letters, digits and underscores, starting with a letter."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"network_{name}".rstrip("_")
